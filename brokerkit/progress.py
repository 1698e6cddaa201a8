"""Contiguous prefixes of settled positions: how far a lane may be committed when it is settled in any order.

A log-shaped broker keeps one number for a lane, the position to go on from. Deliveries end in any order, so only
the part before the first one that is still open may be committed; what is settled beyond it waits.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Generic, TypeVar

T = TypeVar("T")


class Progress(Generic[T]):
    """One lane: what was handed out, in ascending positions, and how far all of it is settled.

    Positions may have gaps (compaction, transaction markers). Not thread-safe.

    - `place`: where the lane goes on; everything before it is settled. Moved by `advance` only.
    - `open`: what is handed out and not settled, by position, in order. A hot loop may write to it directly,
      with `last` kept as the highest position that was handed out.
    """

    __slots__ = ("_ahead", "_limit", "last", "open", "place")

    def __init__(self, place: int) -> None:
        self.place = place
        self.last = place - 1
        self.open: dict[int, T] = {}
        self._ahead: list[int] = []
        self._limit: int | None = None

    def hand_out(self, position: int, value: T) -> None:
        """Positions ascend: `position` is above every one before."""
        self.open[position] = value
        self.last = position

    def settle(self, position: int) -> bool:
        """True when the place can move over `position` some time; False when it was not open, or lies behind
        one that was given back, and so will be handed out again."""
        if self.open.pop(position, None) is None:
            return False
        if self._limit is not None and position > self._limit:
            return False
        self._ahead.append(position)
        return True

    def settle_all(self, positions: list[int]) -> list[int]:
        """`settle` for each; returns those for which it is False."""
        if self._limit is not None:
            return [position for position in positions if not self.settle(position)]
        refused: list[int] = []
        handed_out, ahead = self.open, self._ahead
        for position in positions:
            if handed_out.pop(position, None) is None:
                refused.append(position)
            else:
                ahead.append(position)
        return refused

    def give_back(self, position: int) -> list[int]:
        """`position` will not be settled here any more, so the place can never pass it. Returns the settled
        positions behind it, which will be handed out again with it."""
        if self._limit is None or position < self._limit:
            self._limit = position
        limit = self._limit
        behind = [settled for settled in self._ahead if settled > limit]
        if behind:
            self._ahead = [settled for settled in self._ahead if settled <= limit]
        return behind

    def advance(self) -> list[int]:
        """Moves `place` as far as everything before it is settled; returns the positions it passed, ascending."""
        if not self._ahead:
            return []
        reach = next(iter(self.open), self.last + 1)
        self._ahead.sort()
        cut = bisect_left(self._ahead, reach)
        passed, self._ahead = self._ahead[:cut], self._ahead[cut:]
        if passed:
            self.place = passed[-1] + 1
        return passed

    def ahead(self) -> list[int]:
        """Positions that are settled and that `advance` has not passed yet."""
        return list(self._ahead)
