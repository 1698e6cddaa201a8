"""Real RabbitMQ nodes of the three versions that differ, and a topic of one's own on each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import brokerkit
from brokerkit.local.contract import LocalBroker
from brokerkit.plugins import plugins

VERSIONS = ("rabbitmq", "rabbitmq:4.0", "rabbitmq:3.10")

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LocalBroker]]:
    """Starts a local broker by target name; all of them end with the session."""
    started: list[LocalBroker] = []

    def one(target: str, **options: object) -> LocalBroker:
        broker = plugins()["rabbitmq"].local()[target]()
        broker.provision()
        started.append(broker)
        broker.start(Path(tmp_path_factory.mktemp("rabbitmq")), **options)
        return broker

    yield one
    for broker in started:
        broker.stop()


@pytest.fixture(scope="session")
def running(start: Callable[..., LocalBroker]) -> Callable[[str], LocalBroker]:
    """The node of a version that all tests share."""
    brokers: dict[str, LocalBroker] = {}

    def one(target: str) -> LocalBroker:
        if target not in brokers:
            brokers[target] = start(target)
        return brokers[target]

    return one


@pytest.fixture(params=VERSIONS)
def url(request: pytest.FixtureRequest, running: Callable[[str], LocalBroker]) -> str:
    return running(request.param).url()


@pytest.fixture(scope="session")
def newest(running: Callable[[str], LocalBroker]) -> str:
    return running("rabbitmq").url()


@pytest.fixture
def topic() -> str:
    return f"topic-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def broker(url: str, topic: str) -> Iterator[brokerkit.Broker]:
    with brokerkit.connect(url) as opened:
        yield opened
        opened.delete(topic)
        opened.delete(f"{topic}-dead")
