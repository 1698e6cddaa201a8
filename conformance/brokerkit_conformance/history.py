"""What happened: one append-only record of operations, written by every actor, read by pure checkers.

A history is JSON Lines, one event a line. Every incarnation of an actor has a file of its own and writes each
line with one `os.write` on a descriptor opened with O_APPEND, so that a process killed with SIGKILL leaves a
valid journal. `History.load` merges the files of a folder by the monotonic clock, which all processes of one
machine share. Every line has its number in its file, `no`, from 1; beside the journal, in a file of its own, stands
how many lines were written. Who loses a line, the last one too, is found out by that, whoever wrote it.

The operations, and what they carry beside `id` (the message):

- `cell` info: the first line of a history, what is judged. `target`, `check`, `point` (the failure point),
  `guarantee`, `producer_guarantee`, `claim` {loss, duplicate, reorder, condition, source} or None when the plugin
  claims nothing here, `properties`, `seed`, `store` (what it is, where effects are in one), `needs_fault`,
  `subscriptions` (those that owe every confirmed message), `witness` (what must be seen: `loss`, `duplicate` or none),
  `asked` (a sentence). Under an `at_most_once` producer nothing is confirmed: every message sent is owed, and one that
  is not there is lost.
- `trial` invoke|ok: `n`. Every fault of a trial carries `trial`.
- `send` invoke; then ok (confirmed) | fail (refused) | info (unknown): `position`, `cause`, `detail`, `key`, `sha`,
  `seq`, `attempts`. Under `at_most_once` the end is `info` with `cause` "not_asked". `topic`.
- `receive` ok: `attempt`, `position`, `key`, `sha`, `topic`, `subscription`, `headers_ok`, `published_at`, `drain`.
- `effect` ok: `subscription`: the side effect happened.
- `ack`, `nack`, `reject` invoke; then ok with `end` (settled, sent, lost, unknown), or fail with `error`.
- `dead` ok: read from the dead letters; `reason`, `attempt`: such a message is not lost.
- `stored` ok: an independent reader found one stored copy; `position`.
- `fault` invoke|ok|fail: `kind`, `target`, `evidence`, `trial`. `heal` ok.
- `expect` ok|fail: `what` (a sentence), `got`: something a check asserts beyond counts; `witness` true when it must
  be seen rather than hold.
- `txn` invoke, then ok (committed) | fail (nothing happened) | info (nobody can tell); `take` ok and `put` ok: a
  message taken in, and one about to be sent, by `txn`; `position`, `topic`; `commit` invoke. `receive` of an output
  carries `txn`. `peek` ok: seen by a reader that looks at what is not committed.
- `charge` ok: a row of the ledger of effects in a store, as read there at the end, and as good as an `effect`:
  `dollars`, `account`, `by` (which actor made it), `made_at` (by its monotonic clock), `subscription`. `ledger` ok:
  `balances`.
- `drain_begin` info, `drain_end` info: `reason` complete | deadline, `missing`, `depth`.
- `event` info: `kind`, `detail`: what the library told its user.
- `at` info: `point`: an actor stands at a barrier. `note` info: `text`. `unsupported` info: `reason`.
- `process_start` info, `process_end` info: `target`, `status`, as waitpid tells it (-9: killed), `lines`: how many the
  target had written to its journal.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

_OWN = ("t", "wall", "actor", "pid", "op", "type", "id", "no")
_OPTIONAL = ("id", "no")


@dataclass(frozen=True, slots=True)
class Event:
    """One line. `t` is CLOCK_MONOTONIC in nanoseconds, `wall` milliseconds since the epoch, `no` the line's number in
    its actor's journal; None in a history written by hand."""

    t: int
    wall: int
    actor: str
    pid: int
    op: str
    type: str
    id: str | None = None
    more: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    no: int | None = None

    def get(self, name: str, default: Any = None) -> Any:
        return self.more.get(name, default)

    def line(self) -> bytes:
        own = {name: getattr(self, name) for name in _OWN if getattr(self, name) is not None}
        return json.dumps({**own, **self.more}, ensure_ascii=True, default=str).encode() + b"\n"

    @classmethod
    def parse(cls, line: str | bytes) -> Event:
        """Raises ValueError for what is not an event."""
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError("an event is a JSON object")
        try:
            own = {name: fields.pop(name) for name in _OWN if name not in _OPTIONAL}
        except KeyError as missing:
            raise ValueError(f"an event has {missing}") from None
        optional = {name: fields.pop(name, None) for name in _OPTIONAL}
        return cls(**own, **optional, more=MappingProxyType(fields))


class Journal:
    """The file of one actor's incarnation. Safe from several threads; every event is in the kernel on return."""

    def __init__(self, path: Path, actor: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.actor = actor
        self.lines = 0
        self._turn = threading.Lock()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._count = os.open(_count_of(path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, op: str, type: str = "info", id: str | None = None, **more: Any) -> Event:
        with self._turn:
            number = self.lines + 1
            now, wall = time.monotonic_ns(), time.time_ns() // 1_000_000
            event = Event(now, wall, self.actor, os.getpid(), op, type, id, more, number)
            os.write(self._file, event.line())
            os.pwrite(self._count, b"%d\n" % number, 0)
            self.lines = number
        return event

    @staticmethod
    def written(path: Path) -> int | None:
        """How many lines the journal of that path was given, as said beside it; None if that is not said."""
        try:
            return int(_count_of(path).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            os.close(self._count)
            self._file = self._count = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class History:
    """All events of one cell in the order of the monotonic clock."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.events: tuple[Event, ...] = tuple(sorted(events, key=lambda event: event.t))

    @classmethod
    def load(cls, place: Path) -> History:
        """From a file, or from every `*.jsonl` of a folder. A last line cut short is left out; any other line that
        is no event raises ValueError with its place."""
        files = sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
        return cls(event for file in files for event in _read(file))

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(event.line() for event in self.events))

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def of(self, op: str, type: str | None = None) -> list[Event]:
        """Events of one operation, of one type if given, in order."""
        return [event for event in self.by_op.get(op, ()) if type is None or event.type == type]

    def ids(self, op: str, type: str | None = None) -> set[str]:
        return {event.id for event in self.of(op, type) if event.id is not None}

    def trail(self, id: str) -> list[Event]:
        """Everything that happened to one message, and the faults around it."""
        return [event for event in self.events if event.id == id or event.op in ("fault", "heal")]

    @cached_property
    def cell(self) -> Event | None:
        """What is judged; None for a history written by hand."""
        cells = self.of("cell")
        return cells[0] if cells else None

    @cached_property
    def by_op(self) -> Mapping[str, tuple[Event, ...]]:
        return self._index(lambda event: event.op)

    @cached_property
    def by_id(self) -> Mapping[str, tuple[Event, ...]]:
        return self._index(lambda event: event.id)

    def _index(self, key: Callable[[Event], str | None]) -> Mapping[str, tuple[Event, ...]]:
        found: dict[str, list[Event]] = {}
        for event in self.events:
            if (value := key(event)) is not None:
                found.setdefault(value, []).append(event)
        return {value: tuple(events) for value, events in found.items()}


def _count_of(journal: Path) -> Path:
    return journal.with_suffix(".lines")


def _read(file: Path) -> Iterator[Event]:
    lines = file.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            yield Event.parse(line)
        except ValueError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                return
            raise ValueError(f"{file}:{number}: {error}") from error
