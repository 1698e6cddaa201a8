"""Reads a cell's journals while they are being written."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from brokerkit_conformance.history import Event


class Tail:
    """The events of a folder's journals so far. One thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, int] = {}
        self.events: list[Event] = []

    def refresh(self) -> list[Event]:
        """Reads what is new; returns everything so far, in the order of reading."""
        for file in sorted(self._directory.glob("*.jsonl")):
            with file.open("rb") as lines:
                lines.seek(self._read.get(file, 0))
                new = lines.read()
            whole = new.rfind(b"\n") + 1
            self._read[file] = self._read.get(file, 0) + whole
            self.events += [Event.parse(line) for line in new[:whole].splitlines()]
        return self.events

    def ids(self, op: str, type: str | None = None, **more: object) -> set[str]:
        """Of events already read."""
        return {event.id for event in self.events if event.id is not None and _is(event, op, type, more)}

    def count(self, op: str, type: str | None = None, **more: object) -> int:
        return sum(1 for event in self.events if _is(event, op, type, more))

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


def _is(event: Event, op: str, type: str | None, more: dict[str, object]) -> bool:
    return (
        event.op == op
        and (type is None or event.type == type)
        and all(event.more.get(name) == value for name, value in more.items())
    )
