"""One assigned partition: what was handed out, what waits to be handed out again, how far it may be committed."""

from __future__ import annotations

import heapq
import time
from bisect import bisect_left

from brokerkit.progress import Progress
from brokerkit_kafka.incoming import KafkaIncoming

SHIFT = 48
"""Tokens are a lane's number shifted by this, plus the offset."""
_LOOK_AHEAD = 1000
"""Delayed messages of a retry partition that are kept in memory, so that short delays pass long ones."""


class Lane:
    """State of one assignment of one partition. Used under the receiver's lock.

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
        self.metadata = metadata
        self.progress: Progress[KafkaIncoming] = Progress(start)
        self.committed = start
        self.asked: int | None = None
        """The offset of a commit that is not answered yet."""
        self.passed: list[int] = []
        """Settled offsets that no answered commit covers, ascending."""
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

    def advance(self) -> bool:
        """Moves the commit mark; True when there is something new to commit."""
        self.passed += self.progress.advance()
        return self.progress.place > self.committed

    def answered(self, offset: int) -> list[int]:
        """A commit up to `offset` was taken: the tokens that it settled."""
        self.committed = offset
        cut = bisect_left(self.passed, offset)
        done = [self.base + passed for passed in self.passed[:cut]]
        del self.passed[:cut]
        return done

    def give_back(self, offset: int) -> list[int]:
        """The partition will be read again from `offset`: the tokens that were settled behind it."""
        return [self.base + behind for behind in self.progress.give_back(offset)]

    def unsettled(self) -> list[int]:
        """Tokens whose settlement no commit covers."""
        return [self.base + offset for offset in (*self.passed, *self.progress.ahead())]
