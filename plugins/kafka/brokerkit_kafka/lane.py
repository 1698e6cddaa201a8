"""One assigned partition: what was handed out, what waits to be handed out again, how far it may be committed.

Compiled where there is a compiler: each message passes here."""

from __future__ import annotations

import heapq
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Final

from confluent_kafka import Message as Native

from brokerkit.progress import Progress
from brokerkit_kafka.incoming import KafkaIncoming, Place

SHIFT: Final = 48
"""Tokens are a lane's number shifted by this, plus the offset."""
_LOOK_AHEAD: Final = 1000
"""Delayed messages of a retry partition that are kept in memory, so that short delays pass long ones."""


class Lane:
    """State of one assignment of one partition. Used under the receiver's lock. Positions in `progress` are tokens.

    `retried`: a retry topic's partition, whose messages become due at their own times. In every other one the later
    messages wait while one waits to be handed out again.
    """

    __slots__ = (
        "asked",
        "base",
        "committed",
        "metadata",
        "name",
        "native_topic",
        "partition",
        "passed",
        "paused",
        "place",
        "progress",
        "retried",
        "waiting",
    )

    def __init__(
        self, number: int, native_topic: str, partition: int, topic: str, topic_id: str, start: int, metadata: str
    ) -> None:
        self.base = number << SHIFT
        self.native_topic = native_topic
        self.partition = partition
        self.name = f"{native_topic}/{partition}"
        self.retried = native_topic != topic
        self.place = Place(self.base, self.name, native_topic, partition, topic, topic_id)
        self.metadata = metadata
        self.progress: Progress[KafkaIncoming] = Progress(self.base + start)
        self.committed = start
        self.asked: int | None = None
        """The offset of a commit that is not answered yet."""
        self.passed: list[int] = []
        """Settled tokens that no answered commit covers, ascending."""
        self.waiting: list[tuple[float, int, float, KafkaIncoming]] = []
        self.paused = False

    def wait(self, incoming: KafkaIncoming, due: float) -> None:
        """Keeps `incoming` until `due`: by time on a retry topic, by offset elsewhere."""
        heapq.heappush(self.waiting, (due if self.retried else 0.0, incoming.offset, due, incoming))

    def holds(self, incoming: KafkaIncoming) -> bool:
        """Whether a message that has just arrived waits for its time, or behind another."""
        due = incoming.due if self.retried else 0.0
        waits = due > time.time() if self.retried else bool(self.waiting)
        if waits:
            self.wait(incoming, due)
        return waits

    def due(self, now: float) -> KafkaIncoming | None:
        """The next one that may be handed out again."""
        if self.waiting and self.waiting[0][2] <= now:
            return heapq.heappop(self.waiting)[3]
        return None

    def full(self) -> bool:
        """Whether nothing more should be fetched while these wait."""
        return len(self.waiting) >= _LOOK_AHEAD if self.retried else bool(self.waiting)

    def reached(self) -> int:
        """The offset before which all is settled."""
        return self.progress.place - self.base

    def advance(self) -> bool:
        """Moves the commit mark; True when there is something new to commit."""
        self.passed += self.progress.advance()
        return self.reached() > self.committed

    def answered(self, offset: int) -> list[int]:
        """A commit up to `offset` was taken: the tokens that it settled."""
        self.committed = offset
        cut = bisect_left(self.passed, self.base + offset)
        done = self.passed[:cut]
        del self.passed[:cut]
        return done

    def give_back(self, token: int) -> list[int]:
        """The partition will be read again from there: the tokens that were settled behind it."""
        return self.progress.give_back(token)

    def unsettled(self) -> list[int]:
        """Tokens whose settlement no commit covers."""
        return [*self.passed, *self.progress.ahead()]


def admit(batch: Sequence[Native], lanes: Mapping[tuple[str, int], Lane], failed: list[Native]) -> list[KafkaIncoming]:
    """What of a fetched batch belongs to `lanes` and may be handed out now; what is no message goes to `failed`.

    It comes in runs of one partition each, which keeps a message cheap.
    """
    found: list[KafkaIncoming] = []
    topic: Any = None
    partition: Any = None
    lane: Lane | None = None
    handed_out: dict[Any, KafkaIncoming] = {}
    place: Place | None = None
    base = last = 0
    picky = False
    several = len({topic for topic, _ in lanes}) > 1
    message: Any
    for message in batch:
        if message.error() is not None:
            failed.append(message)
            continue
        if message.partition() != partition or (several and message.topic() != topic):
            if lane is not None:
                lane.progress.last = last
            topic, partition = message.topic(), message.partition()
            lane = lanes.get((topic, partition))
            if lane is not None:
                handed_out, last = lane.progress.open, lane.progress.last
                place, base = lane.place, lane.base
                picky = lane.retried or bool(lane.waiting)
        if lane is None or place is None:
            continue
        offset: int = message.offset()
        if base + offset <= last:
            continue
        last = base + offset
        token: Any = last
        incoming = KafkaIncoming(message, place, token, len(message))
        handed_out[token] = incoming
        if not (picky and lane.holds(incoming)):
            found.append(incoming)
    if lane is not None:
        lane.progress.last = last
    return found


def settle(tokens: Sequence[Any], lanes: Mapping[int, Lane]) -> list[Any]:
    """Settles in `lanes`, by their numbers; returns the tokens that will be handed out again all the same."""
    refused: list[Any] = []
    number = -1
    run: list[Any] = []
    token: Any
    for token in tokens:
        its: int = token
        if its >> SHIFT != number:
            if run:
                refused += _settle_run(run, lanes.get(number))
                run = []
            number = its >> SHIFT
        run.append(token)
    if run:
        refused += _settle_run(run, lanes.get(number))
    return refused


def _settle_run(run: list[Any], lane: Lane | None) -> list[Any]:
    return run if lane is None else lane.progress.settle_all(run)
