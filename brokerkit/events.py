"""What happens beside sends and deliveries, told to `on_event` and logged once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

import tenacity

T = TypeVar("T")

logger = logging.getLogger("brokerkit")


class EventKind(StrEnum):
    DISCONNECTED = "disconnected"
    RECONNECTED = "reconnected"
    TROUBLE = "trouble"
    RECOVERED = "recovered"
    BLOCKED = "blocked"
    UNBLOCKED = "unblocked"
    ASSIGNED = "assigned"
    REVOKED = "revoked"
    LOST = "lost"
    LEASE_LOST = "lease_lost"
    DROPPED = "dropped"
    DEAD_LETTERED = "dead_lettered"
    UNFINISHED = "unfinished"


_WARNINGS = {
    EventKind.DISCONNECTED,
    EventKind.TROUBLE,
    EventKind.BLOCKED,
    EventKind.LOST,
    EventKind.LEASE_LOST,
    EventKind.DROPPED,
    EventKind.DEAD_LETTERED,
    EventKind.UNFINISHED,
}


@dataclass(frozen=True, slots=True)
class Event:
    """`source` is the producer or consumer, `detail` a sentence without secrets or bodies, `at` in ms."""

    kind: EventKind
    source: str
    detail: str
    at: int = field(default_factory=lambda: time.time_ns() // 1_000_000)


OnEvent = Callable[[Event], None]


class Reporter:
    """Logs each event once and passes it to the users' callbacks, whose exceptions end here, logged."""

    def __init__(self, source: str, callbacks: Iterable[OnEvent | None]) -> None:
        self._source = source
        self._callbacks = [callback for callback in callbacks if callback is not None]

    def __call__(self, kind: EventKind, detail: str) -> None:
        level = logging.WARNING if kind in _WARNINGS else logging.INFO
        logger.log(level, "%s: %s: %s", self._source, kind, detail)
        event = Event(kind, self._source, detail)
        for callback in self._callbacks:
            call(callback, event)


def call(callback: Callable[[T], object], value: T) -> None:
    """Calls a user's callback; what it raises is logged, for it must not end a thread of ours."""
    try:
        callback(value)
    except Exception:
        logger.exception("a callback raised")


def backoffs() -> Iterator[float]:
    """Seconds to wait before each further attempt to reach a broker: from about 50 ms up to 2 s, with jitter."""
    wait = tenacity.wait_exponential_jitter(multiplier=0.05, max=2.0, exp_base=1.8, jitter=0.05)
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    while True:
        yield min(wait(state), 2.0)
        state.attempt_number += 1
