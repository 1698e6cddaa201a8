"""Sending: each call is turned into as few publish requests as it allows, and each request is one attempt.

Messages of one ordering key go in requests of their own, one after the other, so that a failed one holds back what
comes behind it; requests of different keys are under way together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from brokerkit.driver import Cause, Confirmed, Outcome, Outcomes, Refused, Sender, SenderEvents, Unknown
from brokerkit.errors import ConnectionLost
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message
from brokerkit_pubsub.encoding import MAX_REQUEST, Unencodable, encoded, position, size_of
from brokerkit_pubsub.errors import NOT_STORED, TRANSIENT, never_sent
from brokerkit_pubsub.link import Link, PublishRequest, answer_of

_MOST = 1000
"""Messages that one request may carry."""
_TOGETHER = 64
"""Requests under way at once."""
_ATTEMPT = 10.0
"""Seconds that an answer may take before it is asked for again on another connection."""


@dataclass(slots=True)
class _Batch:
    """What one request carries: messages by their sequence numbers."""

    numbers: list[int] = field(default_factory=list)
    messages: list[Any] = field(default_factory=list)
    size: int = 0


class PubsubSender(Sender):
    def __init__(
        self,
        link: Link,
        topic: str,
        path: str,
        ordering: bool,
        guarantee: Guarantee,
        outcomes: Outcomes,
        events: SenderEvents,
        delivery_timeout: float,
    ) -> None:
        self._link = link
        self._topic = topic
        self._path = path
        self._ordering = ordering
        self._confirms = guarantee is not Guarantee.AT_MOST_ONCE
        self._outcomes = outcomes
        self._events = events
        self._timeout = min(_ATTEMPT, max(0.5, delivery_timeout))
        self._next = 0
        self._over = ""

    def send(self, messages: Sequence[Message], delay: float = 0.0) -> int:
        if self._over:
            raise ConnectionLost(self._over)
        first = self._next
        self._next += len(messages)
        outcomes: list[Outcome] = []
        queues = self._batches(messages, first, outcomes)
        lost = self._publish(queues, outcomes)
        if not self._confirms:
            outcomes = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        if outcomes:
            self._outcomes(outcomes)
        if lost:
            self._over = lost
            self._events.disconnected(lost)
        return len(messages)

    def close(self, timeout: float) -> None:
        self._over = self._over or "the sender was closed"
        self._link.close()

    # ------------------------------------------------------------ requests

    def _batches(self, messages: Sequence[Message], first: int, outcomes: list[Outcome]) -> dict[str, list[_Batch]]:
        """Requests by ordering key, each key's in order; those without a key may go together."""
        queues: dict[str, list[_Batch]] = {}
        for number, message in enumerate(messages, first):
            try:
                made = encoded(message, self._ordering)
            except Unencodable as error:
                outcomes.append(Refused(number, number, error.cause, str(error)))
                continue
            size = size_of(made)
            batches = queues.setdefault(made.ordering_key, [])
            if not batches or len(batches[-1].numbers) == _MOST or batches[-1].size + size > MAX_REQUEST - 1024:
                batches.append(_Batch())
            batch = batches[-1]
            batch.numbers.append(number)
            batch.messages.append(made)
            batch.size += size
        return queues

    def _publish(self, queues: dict[str, list[_Batch]], outcomes: list[Outcome]) -> str:
        """Sends everything; returns why the session is over, or nothing."""
        lost = ""
        under_way: list[tuple[str, _Batch, Any]] = []
        failed: set[str] = set()
        for key, batch in _in_turn(queues):
            if len(under_way) >= _TOGETHER or any(key and key == other for other, _, _ in under_way):
                lost = self._answers(under_way, failed, outcomes) or lost
                under_way = []
            if key in failed:
                outcomes += _ranges(batch.numbers, _behind)
                continue
            request = PublishRequest(topic=self._path, messages=batch.messages)
            try:
                under_way.append((key, batch, self._link.begin("Publish", request, self._timeout)))
            except ValueError:  # closed meanwhile, by another thread
                outcomes += _ranges(batch.numbers, _closed)
        return self._answers(under_way, failed, outcomes) or lost

    def _answers(self, under_way: list[tuple[str, _Batch, Any]], failed: set[str], outcomes: list[Outcome]) -> str:
        """Waits for all of them; returns why the session is over, or nothing."""
        lost = ""
        for key, batch, future in under_way:
            try:
                ids = answer_of(future).message_ids
                places = [position(self._topic, id) for id in ids]
                outcomes += _confirmed(batch.numbers, places)
            except (grpc.RpcError, grpc.FutureCancelledError) as error:
                lost = self._failed(batch, error, outcomes) or lost
                if key and lost:
                    failed.add(key)
        return lost

    def _failed(self, batch: _Batch, error: Any, outcomes: list[Outcome]) -> str:
        told = isinstance(error, grpc.RpcError)
        code = error.code() if told else grpc.StatusCode.CANCELLED
        detail = f"publish: {error.details() or code.name}" if told else "publish: cancelled"
        if told and never_sent(error):
            outcomes += _ranges(batch.numbers, lambda a, b: Refused(a, b, Cause.UNREACHABLE, detail, retry=True))
            return detail
        if code in NOT_STORED:
            outcomes += _ranges(batch.numbers, lambda a, b: Refused(a, b, NOT_STORED[code], detail))
            return ""
        cause = Cause.TIMED_OUT if code is grpc.StatusCode.DEADLINE_EXCEEDED else Cause.DISCONNECTED
        outcomes += _ranges(batch.numbers, lambda a, b: Unknown(a, b, cause, detail))
        return detail if code in TRANSIENT else ""


def _in_turn(queues: dict[str, list[_Batch]]) -> Iterator[tuple[str, _Batch]]:
    """The first batch of every key, then the second of every key, and so on."""
    turn = 0
    while any(turn < len(batches) for batches in queues.values()):
        for key, batches in queues.items():
            if turn < len(batches):
                yield key, batches[turn]
        turn += 1


def _behind(first: int, last: int) -> Outcome:
    return Refused(first, last, Cause.UNREACHABLE, "an earlier message of the same key has no confirm", retry=True)


def _closed(first: int, last: int) -> Outcome:
    return Refused(first, last, Cause.CLOSED, "the sender was closed")


def _ranges(numbers: Sequence[int], make: Any) -> Iterable[Outcome]:
    return [make(numbers[start], numbers[end - 1]) for start, end in _runs(numbers)]


def _confirmed(numbers: Sequence[int], places: Sequence[Any]) -> Iterable[Outcome]:
    return [Confirmed(numbers[start], numbers[end - 1], places[start:end]) for start, end in _runs(numbers)]


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where `numbers`, ascending, have no gap."""
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        yield 0, len(numbers)
        return
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            yield start, end
            start = end
