"""The lease keeper: renews what is held, from receipt on, the buffer included.

One keeper a session. Leases are renewed for everything outstanding at a third of their length, in batches, with
a little jitter so that many consumers do not renew in step, until a delivery has been held for the stated
maximum. A keeper dies with its process, so that a crash frees the messages within one lease.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from brokerkit.driver import Token

_BATCH = 500


class Held(Protocol):
    """What the keeper needs to know of an outstanding delivery."""

    @property
    def _received(self) -> float:
        """time.monotonic() at receipt."""


class LeaseKeeper:
    """Not thread-safe: call `keep` from the thread that settles."""

    def __init__(self, seconds: float, maximum: float, extend: Callable[[Sequence[Token], float], None]) -> None:
        self.seconds = seconds
        self.maximum = maximum
        self.overdue = False
        """Something has been held for the maximum. Set here, and taken back where a handler asks for more."""
        self._extend = extend
        self._next = time.monotonic() + self._interval()

    def _interval(self) -> float:
        return self.seconds / 3 * random.uniform(0.85, 1.0)

    def due_in(self) -> float:
        """Seconds until `keep` has something to do."""
        return max(0.0, self._next - time.monotonic())

    def keep(self, outstanding: Mapping[Token, Held]) -> None:
        """Renews what is outstanding, when it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._interval()
        all_held = list(outstanding.items())  # the pump adds to it meanwhile
        tokens = [token for token, held in all_held if now - held._received < self.maximum]
        self.overdue = self.overdue or len(tokens) < len(all_held)
        for start in range(0, len(tokens), _BATCH):
            self._extend(tokens[start : start + _BATCH], self.seconds)
