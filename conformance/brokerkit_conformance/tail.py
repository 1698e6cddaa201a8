"""Reads a cell's journals while they are being written."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from brokerkit_conformance.actors.supervise import going_on
from brokerkit_conformance.history import Event


class Tail:
    """The events of a folder's journals so far. One thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, int] = {}
        self.events: list[Event] = []
        self._by_kind: dict[tuple[str, str], list[Event]] = {}
        self._by_actor: Counter[tuple[str, str, str]] = Counter()

    def refresh(self) -> list[Event]:
        """Reads what is new; returns everything so far, in the order of reading. Raises ActorFailed when the run is
        interrupted."""
        going_on()
        for file in sorted(self._directory.glob("*.jsonl")):
            with file.open("rb") as lines:
                lines.seek(self._read.get(file, 0))
                new = lines.read()
            whole = new.rfind(b"\n") + 1
            self._read[file] = self._read.get(file, 0) + whole
            for line in new[:whole].splitlines():
                self._add(Event.parse(line))
        return self.events

    def ids(self, op: str, type: str | None = None, **more: object) -> set[str]:
        """Of events already read."""
        return {event.id for event in self._of(op, type) if event.id is not None and _has(event, more)}

    def count(self, op: str, type: str | None = None) -> int:
        return len(self._of(op, type))

    def count_by(self, actor: str, op: str, type: str) -> int:
        return self._by_actor[actor, op, type]

    def _add(self, event: Event) -> None:
        self.events.append(event)
        self._by_kind.setdefault((event.op, event.type), []).append(event)
        self._by_actor[event.actor, event.op, event.type] += 1

    def _of(self, op: str, type: str | None) -> list[Event]:
        if type is not None:
            return self._by_kind.get((op, type), [])
        return [event for (name, _), events in self._by_kind.items() if name == op for event in events]

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


def _has(event: Event, more: dict[str, object]) -> bool:
    return all(event.more.get(name) == value for name, value in more.items())
