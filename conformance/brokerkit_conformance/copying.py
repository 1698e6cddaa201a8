"""Consume, transform, produce, as a check tells it: a topic in, two topics out, copiers between them, readers behind.

Every message that goes in is sent on to both topics out under its own id. One reader follows from the beginning, one
comes at the end: what goes in has to be there once for each.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from brokerkit_conformance.faults import CannotInduce
from brokerkit_conformance.story import WORK, ActorHandle, Story

READ, SECOND, LATE, PEEK = "read", "second", "late", "peek"
LEDGER = "ledger"
"""Stands for what a handler does elsewhere."""
SUBSCRIPTIONS = (READ, SECOND, LATE)
"""Those that owe every message: the readers' on the first topic out and on the second, and the late one's."""
_SLACK = 1.5


class CopierActor(ActorHandle):
    def at(self, point: str, timeout: float = 60.0) -> str:
        """The id of the message at whose `point` it stands still."""
        return self.process.wait_at(point, timeout)

    def release(self) -> None:
        self.process.release()

    def close(self) -> None:
        self.process.close()


class Copying:
    """Declares the topics; the copiers it starts are ended by the story."""

    def __init__(self, story: Story) -> None:
        if not story.target.capabilities.transactions:
            raise CannotInduce("it has no transactions of its own")
        self.story = story
        self.outs = [f"{story.topic}-out", f"{story.topic}-two"]
        self.slots: list[str] = []
        story.declare()
        story.declare(READ, LATE, PEEK, topic=self.outs[0])
        story.declare(SECOND, topic=self.outs[1])

    def copier(
        self,
        slot: str = "slot-a",
        *,
        proxied: bool = False,
        stop_at: str | None = None,
        after: int = 0,
        settings: dict[str, str] | None = None,
        options: dict[str, Any] | None = None,
        **handler: Any,
    ) -> CopierActor:
        """A copier process that has its session. `options` go to `Broker.transactions`; `handler`: see the actor."""
        if stop_at is not None:
            handler["stop_at"] = {"point": stop_at, "after": after}
        if slot not in self.slots:
            self.slots.append(slot)
        spec = {
            "topics": [self.story.topic],
            "subscription": WORK,
            "instance": slot,
            "outs": self.outs,
            "options": options or {},
            "settings": settings or {},
            "handler": handler,
        }
        return CopierActor(self.story, self.story.start("copier", spec, proxied=proxied)).ready()

    def reader(self) -> None:
        """Follows both topics out from now on."""
        self._read((self.outs[0], READ), (self.outs[1], SECOND))

    def peeker(self) -> bool:
        """A reader that also sees what is not committed; False where there is no such thing."""
        settings = self.story.properties.uncommitted
        if settings is None:
            return False
        self._read((self.outs[0], PEEK), settings=dict(settings), peek=True)
        return True

    def ends(self, type: str, actor: str | None = None) -> int:
        """Transactions that ended so (ok, fail, info), as far as it is written down."""
        self.story.tail.refresh()
        return sum(
            1
            for event in self.story.tail.events
            if event.op == "txn" and event.type == type and actor in (None, event.actor)
        )

    def wait_committed(
        self, more: int = 1, timeout: float = 40.0, actor: str | None = None, since: int | None = None
    ) -> bool:
        """Whether so many more transactions are committed in time, by one copier or by all of them: more than now, or
        than there were when `ends` said `since`, for what may be committed before anybody looks."""
        before = self.ends("ok", actor) if since is None else since
        return self.story.wait(lambda: self.ends("ok", actor) >= before + more, timeout)

    def longest(self) -> float:
        """Seconds of the committed transaction that lasted longest."""
        self.story.tail.refresh()
        events = [event for event in self.story.tail.events if event.op == "txn"]
        began = {event.get("txn"): event.t for event in events if event.type == "invoke"}
        lasted = [event.t - began.get(event.get("txn"), event.t) for event in events if event.type == "ok"]
        return max(lasted, default=0) / 1e9

    def wait_sent(self, copier: CopierActor, timeout: float = 15.0) -> bool:
        """Whether the broker has in time what the open transaction of this copier sent to the first topic, which a
        peeker tells."""
        self.story.tail.refresh()
        begun = [e.get("txn") for e in self.story.tail.by(copier.name, "txn") if e.type == "invoke"]
        sent = {e.id for e in self.story.tail.by(copier.name, "put") if e.get("txn") == begun[-1]}
        return self.story.wait(lambda: sent <= self._peeked(begun[-1]), timeout)

    def _peeked(self, transaction: str | None) -> set[str | None]:
        return {e.id for e in self.story.tail.events if e.op == "peek" and e.get("txn") == transaction}

    def drain(self, *more: str, **handler: Any) -> None:
        """Heals everything, lets a fresh copier of each slot finish, and reads to the end, also with a late reader.
        `more`: other subscriptions that owe every message."""
        story = self.story
        owing = (*SUBSCRIPTIONS, *more)
        story.heal_network()
        story.end_actors("copier")
        story.journal.write("drain_begin", subscriptions=list(owing))
        for slot in self.slots:
            self.copier(slot, **handler)
        began = time.monotonic()
        until = began + 60.0 + 4.0 * story.bound
        followed = [name for name in owing if name != LATE]
        story.wait(lambda: not any(story.missing(name) for name in followed), until - time.monotonic())
        self._read((self.outs[0], LATE))
        story.wait(lambda: not story.missing(LATE), until - time.monotonic())
        where = [(WORK, story.topic), (READ, self.outs[0]), (LATE, self.outs[0]), (SECOND, self.outs[1])]
        if not self._end_drain(owing, where, began, until):
            self._tell_blocked()

    def _end_drain(
        self, subscriptions: Sequence[str], where: Sequence[tuple[str, str]], began: float, until: float
    ) -> bool:
        """Whether the broker says that nothing is left, after a window longer than any redelivery takes."""
        story = self.story
        story.wait(lambda: False, max(began + _SLACK * story.bound - time.monotonic(), 0.5))
        while True:
            depths = {name: story.depth(name, topic) for name, topic in where}
            whole = all(depth == 0 for depth in depths.values())
            if whole or time.monotonic() > until:
                break
            story.wait(lambda: False, 0.3)
        missing = {name: len(story.missing(name)) for name in subscriptions}
        story.journal.write(
            "drain_end",
            reason="complete" if whole else "deadline",
            missing=sum(missing.values()),
            depth=sum(depth or 0 for depth in depths.values()),
            by_subscription={name: {"missing": missing.get(name), "depth": depth} for name, depth in depths.items()},
            seconds=round(time.monotonic() - began, 3),
        )
        left = ", ".join(f"{depth} in {name}" for name, depth in depths.items())
        story.did(f"worked and read to the end: {sum(missing.values())} not seen; the broker says what is left: {left}")
        return whole

    def _tell_blocked(self) -> None:
        """What is stored and not to be read yet: it is blocked, not lost."""
        if not self.peeker():
            return
        self.story.wait(lambda: False, 5.0)
        missing = self.story.missing(READ)
        seen = {event.id for event in self.story.tail.events if event.op == "peek"}
        for id in sorted(missing & {id for id in seen if id is not None}):
            self.story.journal.write("stored", "ok", id)

    def _read(self, *reads: tuple[str, str], settings: dict[str, str] | None = None, peek: bool = False) -> None:
        spec = {
            "reads": [{"topic": topic, "subscription": subscription} for topic, subscription in reads],
            "settings": settings or {},
            "peek": peek,
        }
        ActorHandle(self.story, self.story.start("reader", spec)).ready()
