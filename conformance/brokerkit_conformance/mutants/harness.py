"""Broken harnesses: each is a context in which the suite itself does something wrong.

A run inside one of them must not come out held: the suite has to notice that its own evidence is worth nothing.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from brokerkit_conformance.actors.supervise import Actor
from brokerkit_conformance.faults.proxy import _Connection
from brokerkit_conformance.history import Event, History
from brokerkit_conformance.story import Story


@contextmanager
def kill_is_sigterm() -> Iterator[None]:
    """The process is asked to end in order, and does, where it was to be killed."""

    def kill(self: Actor) -> int:
        self._signal(signal.SIGTERM)
        self.release()
        return self._reap(20.0)

    with _instead(Actor, "kill", kill):
        yield


@contextmanager
def barrier_never_reached() -> Iterator[None]:
    """The actor is not told where to stand still, so it never does."""

    def impatient(self: Actor, point: str, timeout: float = 30.0, *, wait_at: Any = Actor.wait_at) -> Any:
        return wait_at(self, point, 3.0)

    with _started_with(stop_at=None), _instead(Actor, "wait_at", impatient):
        yield


@contextmanager
def strikes_without_waiting() -> Iterator[None]:
    """The supervisor strikes before the actor stands at the line where it was to be struck: which is put out of its
    reach, for a quick one would stand there in time."""

    def at_once(self: Actor, point: str, timeout: float = 30.0) -> str:
        return "whatever"

    with _started_with(after=1_000_000), _instead(Actor, "wait_at", at_once):
        yield


@contextmanager
def proxy_matches_nothing() -> Iterator[None]:
    """The proxy forwards every frame, also the one that it was to swallow."""

    def forwards(self: _Connection, way: str, frame: Any) -> bool:
        return False

    with _instead(_Connection, "_dropped", forwards):
        yield


@contextmanager
def reader_dedups() -> Iterator[None]:
    """Whoever writes and reads the journals counts each message once, as a set of ids does."""
    load = History.load.__func__  # type: ignore[attr-defined]

    def each_once(cls: type[History], place: Path) -> History:
        first: dict[str, str] = {}
        kept: list[Event] = []
        for event in load(cls, place):
            if event.op == "effect" and event.id is not None:
                first.setdefault(event.id, event.actor)
            mine = first.get(event.id or "", event.actor) == event.actor
            if mine or event.op not in ("effect", "ack", "at"):
                kept.append(event)
        return cls(_numbered_anew(kept))

    with _instead(History, "load", classmethod(each_once)):
        yield


@contextmanager
def reader_stops_at_the_count() -> Iterator[None]:
    """The reader goes home as soon as it has counted as many messages as were sent."""

    def not_a_moment(self: Story, seconds: float) -> None:
        return

    with _instead(Story, "_stay", not_a_moment):
        yield


@contextmanager
def journal_loses_its_last_line() -> Iterator[None]:
    """What a process wrote last is not in its journal, whichever of its threads that was, and however it ended."""
    load = History.load.__func__  # type: ignore[attr-defined]

    def all_but_the_last(cls: type[History], place: Path) -> History:
        events = list(load(cls, place))
        last = {event.actor: event.no for event in events if event.actor != "supervisor"}
        return cls([event for event in events if last.get(event.actor, 0) != event.no])

    with _instead(History, "load", classmethod(all_but_the_last)):
        yield


def _numbered_anew(events: list[Event]) -> list[Event]:
    """The events as their actors would have written them, had there been no others."""
    lines: Counter[str] = Counter()
    found = []
    for event in events:
        lines[event.actor] += 1
        found.append(replace(event, no=lines[event.actor]))
    return [
        replace(event, more={**event.more, "lines": lines[event.get("target")]}) if event.op == "process_end" else event
        for event in found
    ]


def _started_with(**other: Any) -> AbstractContextManager[None]:
    """Consumers get these options, whatever the check asks for."""
    start = Story.start_consumer

    def started(self: Story, **options: Any) -> Any:
        return start(self, **{**options, **other})

    return _instead(Story, "start_consumer", started)


@contextmanager
def _instead(owner: type, name: str, other: Any) -> Iterator[None]:
    """`owner.name` is `other` for a while."""
    before = owner.__dict__[name]
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, before)
