"""Reads a cell's journals while they are being written."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Set
from pathlib import Path

from brokerkit_conformance.actors.supervise import going_on
from brokerkit_conformance.history import Event


class Tail:
    """The events of a folder's journals so far. One thread.

    Checks ask again every few milliseconds, several at once: what they ask for is kept as it is read, so that an
    answer does not cost a walk through all that happened before."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[str, int] = {}
        self.events: list[Event] = []
        self._ids: dict[tuple[str, str | None, str | None], set[str]] = {}
        self._counts: Counter[tuple[str, str | None, str | None]] = Counter()
        self._of_actor: dict[tuple[str, str], list[Event]] = {}

    def refresh(self) -> list[Event]:
        """Reads what is new; returns everything so far, in the order of reading. Raises ActorFailed when the run is
        interrupted."""
        going_on()
        with os.scandir(self._directory) as entries:
            journals = [entry for entry in entries if entry.name.endswith(".jsonl")]
            grown = sorted(some.path for some in journals if some.stat().st_size > self._read.get(some.path, 0))
        for file in grown:
            with open(file, "rb") as lines:
                lines.seek(self._read.get(file, 0))
                new = lines.read()
            whole = new.rfind(b"\n") + 1
            self._read[file] = self._read.get(file, 0) + whole
            for line in new[:whole].splitlines():
                self._add(Event.parse(line))
        return self.events

    def ids(self, op: str, type: str | None = None, *, subscription: str | None = None) -> Set[str]:
        """Of events already read; of one type, of one subscription, if given. Grows with what is read."""
        return self._ids.setdefault((op, type, subscription), set())

    def count(self, op: str, type: str | None = None) -> int:
        return self._counts[op, type, None]

    def count_by(self, actor: str, op: str, type: str) -> int:
        return self._counts[op, type, actor]

    def by(self, actor: str, op: str) -> list[Event]:
        """What this actor did of that kind, so far."""
        return list(self._of_actor.get((actor, op), ()))

    def _add(self, event: Event) -> None:
        self.events.append(event)
        self._of_actor.setdefault((event.actor, event.op), []).append(event)
        for type in (None, event.type):
            self._counts[event.op, type, None] += 1
            self._counts[event.op, type, event.actor] += 1
            if event.id is not None:
                for subscription in {None, event.get("subscription")}:
                    self._ids.setdefault((event.op, type, subscription), set()).add(event.id)

    def until(self, true: Callable[[], bool], timeout: float, pause: float = 0.05) -> bool:
        """Whether `true()` became true, asked after each refresh, within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            self.refresh()
            if true():
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
