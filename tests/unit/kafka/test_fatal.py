"""A fatal error is raised by the Python client out of the call that serves callbacks, and reaches none of them."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from brokerkit_kafka import receiver, sender
from confluent_kafka import KafkaError, KafkaException

from brokerkit.driver import Cause, Traits, Unknown
from brokerkit.errors import ConnectionLost
from brokerkit.guarantees import Guarantee
from brokerkit.sending import Receipt

FATAL = KafkaException(KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "the sequence is broken", True))


class Producing:
    """Takes messages; the next poll raises. What is purged is reported."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.reports: deque[Any] = deque()
        self.purged = threading.Event()
        self.fatal = True

    def produce(self, topic: str, body: bytes, key: Any, partition: int, done: Any, *_: Any) -> None:
        self.reports.append(done)

    def poll(self, wait: float) -> None:
        if self.fatal and self.reports:
            self.fatal = False
            raise FATAL
        if self.purged.wait(min(wait, 0.01)):
            while self.reports:
                self.reports.popleft()(KafkaError(KafkaError._PURGE_INFLIGHT), None)

    def list_topics(self, topic: str, timeout: float) -> None:
        raise FATAL

    def purge(self, blocking: bool) -> None:
        self.purged.set()

    def __len__(self) -> int:
        return len(self.reports)


class Fenced:
    def __init__(self, config: dict[str, Any]) -> None:
        self.incremental_assign = self.assign = None

    def subscribe(self, topics: Any, **callbacks: Any) -> None:
        pass

    def poll(self, wait: float) -> None:
        raise FATAL

    def close(self) -> None:
        pass


def test_a_senders_session_ends_and_every_message_in_flight_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "Producer", Producing)
    ended = threading.Event()
    why: list[str] = []
    told: list[int] = []
    events: Any = SimpleNamespace(disconnected=lambda reason: (why.append(reason), ended.set()), told=told.append)
    receipts = [Receipt(b"one", "1"), Receipt(b"two", "2")]
    sending = sender.KafkaSender({}, "orders", Guarantee.AT_LEAST_ONCE, events)
    try:
        assert all(sending.post(receipt, *receipt.message[:6]) for receipt in receipts)
        assert ended.wait(5), "the session goes on although its client is dead"
        assert why == ["the sequence is broken"]
        sending._tell()
        assert sum(told) == 2
        assert [(type(receipt._outcome), receipt._outcome.cause) for receipt in receipts] == [
            (Unknown, Cause.DISCONNECTED),
            (Unknown, Cause.DISCONNECTED),
        ]
        with pytest.raises(ConnectionLost, match="the sequence is broken"):
            sending.post(receipts[0], *receipts[0].message[:6])
    finally:
        sending.close(1.0)


def test_a_receivers_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "Consumer", Fenced)
    config = {"group.protocol": "classic", "partition.assignment.strategy": "range"}
    why: list[str] = []
    events: Any = SimpleNamespace(disconnected=why.append)
    receiving = receiver.KafkaReceiver(
        config, {"orders": "orders"}, {}, lambda places, timeout: {}, Traits(), lambda ends: None, events, 1.0
    )
    try:
        with pytest.raises(ConnectionLost, match="the sequence is broken"):
            receiving.receive(10, 0.1)
        assert len(why) == 1
    finally:
        receiving.close(1.0)
