"""A session that cannot be opened leaves nothing behind."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from brokerkit_rabbitmq.session import Session

from brokerkit.errors import ConnectionLost

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors as Linux lists them")


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """Takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield listening


@pytest.fixture
def full() -> Iterator[socket.socket]:
    """Has no room for another connection."""
    with socket.socket() as listening, socket.socket() as one, socket.socket() as two:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for client in (one, two):
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield listening


@pytest.mark.parametrize("kind", ["server", "full"])
def test_a_node_that_does_not_answer_leaves_no_thread_no_descriptor_and_no_traceback(
    kind: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    port = request.getfixturevalue(kind).getsockname()[1]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with (
            caplog.at_level(logging.ERROR, "brokerkit.rabbitmq"),
            pytest.raises(ConnectionLost, match=f":{port} gave no"),
        ):
            Session("unanswered", pika.ConnectionParameters("127.0.0.1", port), 0.2)
    assert len(os.listdir("/proc/self/fd")) == before
    assert "unanswered" not in {thread.name for thread in threading.enumerate()}
    assert not [record for record in caplog.records if record.name == "brokerkit.rabbitmq"]
