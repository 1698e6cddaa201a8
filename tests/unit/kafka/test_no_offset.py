"""When a transactional consumer is told that its group has no offset: lost, or only not to be had at that moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from brokerkit_kafka import transactor as module
from brokerkit_kafka.transactor import KafkaTransactor
from confluent_kafka import KafkaError, TopicPartition

from brokerkit.errors import ConnectionLost, PositionLost

CONFIG = {"group.protocol": "classic", "partition.assignment.strategy": "range"}
GONE = PositionLost("the group has no offset")


class Failed:
    """What librdkafka puts in a message's place."""

    def error(self) -> KafkaError:
        return KafkaError(KafkaError._AUTO_OFFSET_RESET, "no previously committed offset available")

    def topic(self) -> str:
        return "orders"

    def partition(self) -> int:
        return 0


class Client:
    """A consumer that is assigned a partition at its first poll, and gets an error for it at the second."""

    committed_at = -1001
    pending = False

    def __init__(self, config: dict[str, Any]) -> None:
        self.polls: Iterator[Callable[[], Any]] = iter([self._assigned, Failed])

    def subscribe(self, topics: Sequence[str], *, on_assign: Callable[..., None], **_: Any) -> None:
        self.on_assign = on_assign

    def _assigned(self) -> None:
        self.on_assign(self, [TopicPartition("orders", 0)])

    def poll(self, timeout: float) -> Any:
        return next(self.polls, lambda: None)()

    def consume(self, number: int, timeout: float) -> list[Any]:
        return []

    def assign(self, places: list[TopicPartition]) -> None:
        pass

    def committed(self, places: list[TopicPartition], timeout: float) -> list[Any]:
        [place] = places
        return [Place(place.topic, place.partition, self.committed_at, self.pending)]


class Place:
    metadata = ""

    def __init__(self, topic: str, partition: int, offset: int, pending: bool) -> None:
        self.topic, self.partition, self.offset = topic, partition, offset
        self.error = KafkaError(KafkaError.UNSTABLE_OFFSET_COMMIT) if pending else None


class Producer:
    longest = 60.0
    send = None


def transactor(monkeypatch: pytest.MonkeyPatch, starts: Callable[..., Any], *, at: int, pending: bool) -> Any:
    monkeypatch.setattr(module, "made", lambda kind, config: Client(config))
    monkeypatch.setattr(Client, "committed_at", at)
    monkeypatch.setattr(Client, "pending", pending)
    return KafkaTransactor(Producer(), CONFIG, {"orders": "id"}, starts, "ledger", None, "slot")  # type: ignore[arg-type]


def there(partitions: Sequence[TopicPartition], timeout: float) -> Mapping[tuple[str, int], tuple[int, str]]:
    return {(place.topic, place.partition): (7, "") for place in partitions}


def gone(partitions: Sequence[TopicPartition], timeout: float) -> Any:
    raise GONE


def unreachable(partitions: Sequence[TopicPartition], timeout: float) -> Any:
    raise ConnectionLost("nobody answers")


@pytest.mark.parametrize("starts", [there, unreachable])
def test_an_offset_that_the_group_has_ends_the_session_and_not_the_subscription(
    monkeypatch: pytest.MonkeyPatch, starts: Callable[..., Any]
) -> None:
    with pytest.raises(ConnectionLost):
        transactor(monkeypatch, starts, at=-1001, pending=True).receive(10, 0.5)


def test_an_offset_that_the_group_no_longer_has_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PositionLost, match="the group has no offset"):
        transactor(monkeypatch, gone, at=-1001, pending=True).receive(10, 0.5)


def test_an_offset_that_is_no_longer_in_the_log_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PositionLost, match="no longer in the log"):
        transactor(monkeypatch, there, at=3, pending=False).receive(10, 0.5)
