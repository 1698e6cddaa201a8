"""Google's in-memory fake for the session, built by the plugin's own recipe, and a topic of one's own on it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

import brokerkit
from brokerkit.local.fixtures import TestBroker

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def fake(local_broker: Callable[..., TestBroker]) -> TestBroker:
    return local_broker("pubsub:pstest")


@pytest.fixture(scope="session")
def url(fake: TestBroker) -> str:
    """With leases of three seconds."""
    return fake.url + "&ack_deadline=3"


@pytest.fixture
def broker(url: str) -> Iterator[brokerkit.Broker]:
    with brokerkit.connect(url) as connected:
        yield connected


@pytest.fixture
def topic() -> str:
    return f"t{os.getpid()}-{next(_numbers)}"
