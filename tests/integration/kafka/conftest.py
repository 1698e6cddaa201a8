"""One real Kafka node for the session, started by the plugin's own recipe, and a topic of one's own on it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import brokerkit
from brokerkit.local.contract import LocalBroker
from brokerkit.plugins import plugins

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LocalBroker]]:
    """Starts a local Kafka; all of them end with the session."""
    started: list[LocalBroker] = []

    def one(**options: object) -> LocalBroker:
        broker = plugins()["kafka"].local()["kafka"]()
        broker.provision()
        started.append(broker)
        broker.start(Path(tmp_path_factory.mktemp("kafka")), **options)
        return broker

    yield one
    for broker in started:
        broker.stop()


@pytest.fixture(scope="session")
def node(start: Callable[..., LocalBroker]) -> LocalBroker:
    return start()


@pytest.fixture(scope="session")
def url(node: LocalBroker) -> str:
    return node.url() + "?session_timeout=6"


@pytest.fixture
def broker(url: str) -> Iterator[brokerkit.Broker]:
    with brokerkit.connect(url) as connected:
        yield connected


@pytest.fixture
def topic() -> str:
    return f"t{os.getpid()}-{next(_numbers)}"
