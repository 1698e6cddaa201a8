"""One assigned partition: what was handed out, what waits to be handed out again, how far it may be committed."""

from __future__ import annotations

import heapq

from brokerkit.progress import Progress
from brokerkit_kafka.incoming import KafkaIncoming

SHIFT = 48
"""Tokens are a lane's number shifted by this, plus the offset."""


class Lane:
    """State of one assignment of one partition. Used under the receiver's lock.

    - `ordered`: later messages wait while one waits to be handed out again (retry="block").
    - `retried`: a retry topic's partition, whose messages become due at their own times.
    """

    __slots__ = (
        "asked",
        "base",
        "committed",
        "metadata",
        "name",
        "native_topic",
        "ordered",
        "partition",
        "passed",
        "paused",
        "progress",
        "retried",
        "topic",
        "topic_id",
        "waiting",
    )

    def __init__(
        self, number: int, native_topic: str, partition: int, topic: str, topic_id: str, start: int, metadata: str
    ) -> None:
        self.base = number << SHIFT
        self.native_topic = native_topic
        self.partition = partition
        self.topic = topic
        self.topic_id = topic_id
        self.name = f"{native_topic}/{partition}"
        self.retried = native_topic != topic
        self.ordered = not self.retried
        self.metadata = metadata
        self.progress: Progress[KafkaIncoming] = Progress(start)
        self.committed = start
        self.asked: int | None = None
        """The offset of a commit that is not answered yet."""
        self.passed: list[int] = []
        """Settled offsets that no answered commit covers."""
        self.waiting: list[tuple[float, int, float, KafkaIncoming]] = []
        self.paused = False

    def wait(self, incoming: KafkaIncoming, due: float) -> None:
        """Keeps `incoming` until `due`: ordered lanes by offset, others by time."""
        heapq.heappush(self.waiting, (0.0 if self.ordered else due, incoming.offset, due, incoming))

    def due(self, now: float) -> KafkaIncoming | None:
        """The next one that may be handed out again."""
        if self.waiting and self.waiting[0][2] <= now:
            return heapq.heappop(self.waiting)[3]
        return None

    def advance(self) -> bool:
        """Moves the commit mark; True when there is something new to commit."""
        self.passed += self.progress.advance()
        return self.progress.place > self.committed

    def answered(self, offset: int) -> list[int]:
        """A commit up to `offset` was taken: the tokens that it settled."""
        self.committed = offset
        done = [self.base + passed for passed in self.passed if passed < offset]
        self.passed = [passed for passed in self.passed if passed >= offset]
        return done

    def strand(self) -> list[int]:
        """Gives everything from the first waiting message on back; the tokens that were settled behind it."""
        first = min(incoming.offset for *_, incoming in self.waiting)
        return [self.base + behind for behind in self.progress.give_back(first)]

    def unsettled(self) -> list[int]:
        """Tokens whose settlement no commit covers."""
        return [self.base + offset for offset in (*self.passed, *self.progress.ahead())]
