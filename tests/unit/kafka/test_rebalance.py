"""What a rebalance does to messages that were fetched and not handed out yet; librdkafka is played by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from brokerkit_kafka import receiver as module
from brokerkit_kafka.receiver import KafkaReceiver
from confluent_kafka import TopicPartition

from brokerkit.driver import Position, Settlement, Traits

CONFIG = {"group.protocol": "classic", "partition.assignment.strategy": "range"}


class Message:
    def __init__(self, offset: int) -> None:
        self._offset = offset

    def __len__(self) -> int:
        return 0

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return "orders"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset


class Client:
    """A consumer whose polls are written down before: each is a message, a rebalance, or nothing."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.answer = config["on_commit"]
        self.polls: list[Message | Callable[[], None]] = []
        self.committed_at = 0
        self.paused = False

    def subscribe(self, topics: Sequence[str], **callbacks: Callable[..., None]) -> None:
        self.callbacks = callbacks

    def poll(self, timeout: float) -> Message | None:
        while self.polls:
            next_one = self.polls.pop(0)
            if isinstance(next_one, Message):
                return next_one
            next_one()
        return None

    def consume(self, number: int, timeout: float) -> list[Message]:
        found = []
        while self.polls and len(found) < number:
            found += [message] if (message := self.poll(0)) is not None else []
        return found

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [TopicPartition(place.topic, place.partition, self.committed_at) for place in places]

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
        self.committed_at = offsets[0].offset
        if asynchronous:
            self.answer(None, offsets)
        return offsets

    def assign(self, places: list[TopicPartition]) -> None:
        pass

    def pause(self, places: list[TopicPartition]) -> None:
        self.paused = True

    def resume(self, places: list[TopicPartition]) -> None:
        self.paused = False

    def close(self) -> None:
        pass

    def given(self) -> None:
        self.callbacks["on_assign"](self, [TopicPartition("orders", 0)])

    def taken(self) -> None:
        self.callbacks["on_revoke"](self, [TopicPartition("orders", 0)])


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[KafkaReceiver, Client]]:
    monkeypatch.setattr(module, "Consumer", Client)
    events: Any = SimpleNamespace(
        assigned=lambda positions: {},
        revoked=lambda lanes, timeout: None,
        lost=lambda lanes, reason: None,
        trouble=lambda reason: None,
        recovered=lambda: None,
    )
    ends: list[Settlement] = []
    receiver = KafkaReceiver(
        dict(CONFIG), {"orders": "orders"}, {}, lambda places, timeout: {}, Traits(), ends.extend, events, 1.0
    )
    yield receiver, receiver._consumer  # type: ignore[misc]
    receiver.close(1.0)


def received(receiver: KafkaReceiver, room: int) -> list[int]:
    return [
        incoming.position.value for incoming in receiver.receive(room, 0.0) if isinstance(incoming.position, Position)
    ]


def test_what_was_fetched_before_a_rebalance_does_not_jump_what_comes_again(
    session: tuple[KafkaReceiver, Client],
) -> None:
    receiver, client = session
    client.polls = [client.given, Message(0), Message(1)]
    assert received(receiver, 10) == [0, 1]
    receiver._wanted_at = 0.0  # nothing is wanted for a while: messages that come along are kept
    client.polls = [Message(2)]
    receiver.receive(0, 0.0)
    client.polls = [client.taken, client.given]  # nothing was settled: it all comes again
    receiver.receive(0, 0.0)
    client.polls = [Message(0), Message(1), Message(2)]
    assert received(receiver, 10) == [0, 1, 2]


def test_a_rebalance_between_the_first_message_of_a_batch_and_the_others_loses_none(
    session: tuple[KafkaReceiver, Client],
) -> None:
    receiver, client = session
    client.polls = [client.given, Message(0), Message(1)]
    assert received(receiver, 10) == [0, 1]
    client.polls = [Message(2), client.taken, client.given, Message(0), Message(1), Message(2)]
    assert received(receiver, 10) == [0, 1, 2]


def test_what_is_settled_is_not_handed_out_again(session: tuple[KafkaReceiver, Client]) -> None:
    receiver, client = session
    client.polls = [client.given, Message(0), Message(1)]
    tokens = [incoming.token for incoming in receiver.receive(10, 0.0)]
    receiver.settle(acks=tokens[:1])
    client.polls = [client.taken, client.given, Message(1), Message(2)]
    assert received(receiver, 10) == [1, 2]
    assert client.committed_at == 1


def test_a_partition_that_was_paused_when_it_was_taken_away_comes_back_running(
    session: tuple[KafkaReceiver, Client],
) -> None:
    receiver, client = session
    client.polls = [client.given, Message(0)]
    assert received(receiver, 10) == [0]
    receiver._wanted_at = 0.0  # nothing is wanted for a while
    receiver.receive(0, 0.0)
    assert client.paused
    client.polls = [client.taken, client.given]
    receiver.receive(0, 0.0)
    client.polls = [Message(0)]
    assert received(receiver, 10) == [0]
    assert not client.paused
