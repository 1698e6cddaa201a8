"""What is the same in every transaction, whoever commits it, the broker or a store: the block that a user enters, the
loop that gives one after another, and the search for the message that fails."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Self, TypeVar

from brokerkit import _fork
from brokerkit.driver import Incoming
from brokerkit.errors import Closed, ConfigurationError, ConnectionLost
from brokerkit.events import backoffs

IDLE = 0.05
"""Seconds without a message after which a transaction that is limited by time or bytes ends early."""

State = Literal["received", "open", "committed", "aborted", "unknown"]


@dataclass(frozen=True, slots=True)
class Retry:
    """What to do when a transaction fails: abort and run it again, halved until the poison stands alone, which after
    `attempts` runs goes to the dead letters within the next transaction (or is raised, when `dead_letter` is
    False)."""

    attempts: int = 5
    dead_letter: bool = True


class Block:
    """What is entered with `with`, once; leaving it is its owner's to answer."""

    def __init__(self, owner: Loop[Any]) -> None:
        self.state: State = "received"
        self._owner = owner

    @property
    def over(self) -> bool:
        return self.state not in ("received", "open")

    def __enter__(self) -> Self:
        if self.state != "received":
            raise self._misused()
        self.state = "open"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        return self._owner._leave(self, error)

    def _check_open(self) -> None:
        if self.state != "open":
            raise self._misused()

    def _misused(self) -> ConfigurationError | Closed:
        if self.state == "received":
            return ConfigurationError("this transaction is not open: use it inside `with transaction:`")
        if self.state == "open":
            return ConfigurationError("this transaction is open already: transactions do not nest")
        return Closed(f"this transaction has ended ({self.state}): take the next one")


_Block = TypeVar("_Block", bound=Block)


class Loop(ABC, Generic[_Block]):
    """Gives one block after another, each of which is over before the next. Not thread-safe; a context manager."""

    def __init__(
        self,
        on_error: Literal["raise"] | Retry,
        max_messages: int,
        max_bytes: int,
        max_seconds: float,
        timeout: float,
    ) -> None:
        self._on_error = on_error
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._timeout = timeout
        self._trial = Trial(on_error, max_messages)
        self._stopping = False
        self._born = _fork.generation
        self._current: _Block | None = None
        self._waits = backoffs()
        self._not_before = 0.0
        """On the monotonic clock: nothing is tried again before."""

    def receive(self, timeout: float | None = None) -> _Block | None:
        """The next batch as a transaction, or None when nothing new came within `timeout` seconds. Raises Closed, and
        what ended the session for good."""
        _fork.check(self._born, "transactions object")
        if self._stopping:
            raise Closed("these transactions are closed")
        if self._current is not None and not self._current.over:
            raise ConfigurationError("the last transaction is not over: transactions do not nest, leave it first")
        self._current = self._next(time.monotonic() + (self._timeout if timeout is None else timeout))
        return self._current

    def __iter__(self) -> Iterator[_Block]:
        while not self._stopping:
            block = self.receive()
            if block is not None:
                yield block

    def stop(self) -> None:
        """Ends the iteration after the current transaction. Safe to call from a signal handler."""
        self._stopping = True

    @property
    @abstractmethod
    def closed(self) -> bool: ...

    @abstractmethod
    def close(self, timeout: float = 30.0) -> None:
        """Undoes what is open, and ends the session. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _next(self, deadline: float) -> _Block | None:
        """What `receive` returns."""

    @abstractmethod
    def _leave(self, block: _Block, error: BaseException | None) -> bool:
        """Commits, or undoes; returns whether the exception is swallowed."""

    def _rested(self, deadline: float) -> bool:
        """Whether there is a session, after the pause that follows a failure, a new one where need be; False when the
        deadline came first."""
        while not self._stopping:
            now = time.monotonic()
            if self._not_before > now:
                time.sleep(max(0.0, min(self._not_before, deadline) - now))
                if self._not_before > deadline:
                    return False
            try:
                self._connected()
            except ConnectionLost:
                self._not_before = time.monotonic() + next(self._waits)
            else:
                return True
        return False

    @abstractmethod
    def _connected(self) -> None:
        """Opens the session where there is none. Raises ConnectionLost."""

    def _end_current(self) -> None:
        """First thing of a close."""
        self._stopping = True
        if self._current is not None and not self._current.over:
            self._current.state = "aborted"


class Trial:
    """Finds the message that fails: how many may run together, which have failed alone, which are condemned."""

    def __init__(self, policy: Literal["raise"] | Retry, most: int) -> None:
        self._policy = policy
        self._max = most
        self.most = most
        self.needs_keys = policy != "raise"
        self._suspects: set[Hashable] = set()
        self._alone: dict[Hashable, int] = {}
        self._condemned: dict[Hashable, str] = {}

    @property
    def searching(self) -> bool:
        """Whether something has failed and is not found, or found and not gone yet."""
        return bool(self._suspects or self._condemned)

    def sort(self, raws: Sequence[Incoming]) -> tuple[Sequence[Incoming], Sequence[Incoming]]:
        """Those that the user gets to see, and those that go to the dead letters."""
        if not self._condemned:
            return raws, ()
        good = [raw for raw in raws if copy_key(raw) not in self._condemned]
        return good, [raw for raw in raws if copy_key(raw) in self._condemned]

    def rejects(self, condemned: Sequence[Incoming]) -> Sequence[tuple[Incoming, str]]:
        return [(raw, self._condemned[copy_key(raw)]) for raw in condemned]

    def failed(self, keys: Sequence[Hashable], error: Exception) -> bool:
        """Whether to go on; False when this error is the user's to see."""
        assert isinstance(self._policy, Retry)
        self._suspects = set(keys)
        self.most = max(1, len(keys) // 2)
        if len(keys) != 1:
            return True
        [key] = self._suspects
        self._alone[key] = self._alone.get(key, 0) + 1
        if self._alone[key] < self._policy.attempts:
            return True
        del self._alone[key]
        self._over()
        if self._policy.dead_letter:
            self._condemned[key] = f"{type(error).__name__} in {self._policy.attempts} transactions"
        return self._policy.dead_letter

    def passed(self, keys: Sequence[Hashable], condemned: Sequence[Incoming]) -> Iterator[str]:
        """They are committed; a sentence for each dead letter."""
        if self._suspects:
            for key in keys:
                self._suspects.discard(key)
                self._alone.pop(key, None)
            if not self._suspects:
                self._over()
        for raw in condemned:
            yield f"message {raw.id}: {self._condemned.pop(copy_key(raw))}"

    def _over(self) -> None:
        self._suspects.clear()
        self.most = self._max


def copy_key(raw: Incoming) -> Hashable:
    """One stored copy; an id may be there twice."""
    return raw.position or raw.id
