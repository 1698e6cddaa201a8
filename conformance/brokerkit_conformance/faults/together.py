"""One fault that hits several cells at once, so that a broker is killed once for all guarantees."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Together:
    """Cells arrive at a fault; the last to arrive does it, and all go on with its evidence.

    A cell that ends leaves, so that the others do not wait for it.
    """

    def __init__(self, parties: int, patience: float = 120.0) -> None:
        self._parties = parties
        self._patience = patience
        self._waiting = 0
        self._round = 0
        self._changed = threading.Condition()
        self._result: Any = None
        self._error: BaseException | None = None

    def do(self, action: Callable[[], Any]) -> Any:
        """What `action` returned; it runs once for everybody. Raises what it raised, in all of them."""
        with self._changed:
            self._waiting += 1
            mine = self._round
            if self._waiting >= self._parties:
                self._act(action)
            else:
                self._wait(mine, action)
            if self._error is not None:
                raise self._error
            return self._result

    def leave(self) -> None:
        with self._changed:
            self._parties -= 1
            self._changed.notify_all()

    def _wait(self, mine: int, action: Callable[[], Any]) -> None:
        left = self._patience
        while self._round == mine:
            if self._waiting >= self._parties:
                self._act(action)
            elif not self._changed.wait(min(left, 5.0)):
                left -= 5.0
                if left <= 0:
                    self._waiting -= 1
                    raise TimeoutError("the other cells did not come to the fault that they share")

    def _act(self, action: Callable[[], Any]) -> None:
        self._error = None
        try:
            self._result = action()
        except BaseException as error:
            self._error = error
        self._waiting = 0
        self._round += 1
        self._changed.notify_all()
