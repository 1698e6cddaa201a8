"""Transactions: messages in, messages out, all of it committed together or not at all.

One owner thread. The source of what is promised is the driver's Transactor. What is the same everywhere is here: how
much one transaction takes in, what happens after an exception of the user's, when a session is begun anew.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, overload

from brokerkit import _fork
from brokerkit.driver import Driver, Incoming, Position, Reject, Subscription, Transactor
from brokerkit.errors import (
    BrokerkitError,
    Closed,
    ConfigurationError,
    ConnectionLost,
    LeaseLost,
    NotSupported,
    SendRefused,
)
from brokerkit.events import EventKind, Reporter, backoffs
from brokerkit.message import Headers, IdSource, Message, make, outgoing

_CHUNK = 500
"""Messages asked for at a time while a transaction that is limited by time or bytes goes on."""
_IDLE = 0.05
"""Seconds without a message after which such a transaction ends early."""

_SIZE = attrgetter("size")

State = Literal["received", "open", "committed", "aborted", "unknown"]


@dataclass(frozen=True, slots=True)
class Retry:
    """What to do when a transaction fails: abort and run it again, halved until the poison stands alone, which after
    `attempts` runs goes to the dead letters within the next transaction (or is raised, when `dead_letter` is
    False)."""

    attempts: int = 5
    dead_letter: bool = True


def _of(name: str) -> Any:
    return property(attrgetter(f"_raw.{name}"))


class Received:
    """A message inside a transaction: settled by the commit, so there is nothing to ack."""

    __slots__ = ("_raw",)

    body: bytes | None = _of("body")
    id: str = _of("id")
    id_source: IdSource = _of("id_source")
    key: str | None = _of("key")
    content_type: str | None = _of("content_type")
    published_at: int = _of("published_at")
    position: Position | None = _of("position")
    attempt: int | None = _of("attempt")
    topic: str = _of("topic")
    native: Any = _of("native")

    def __init__(self, raw: Incoming) -> None:
        self._raw = raw

    @property
    def headers(self) -> Headers:
        """The producer's headers, without brokerkit's own."""
        return {name: value for name, value in self._raw.headers.items() if not name.startswith("brokerkit-")}

    @property
    def message(self) -> Message:
        raw = self._raw
        fields = (raw.body, raw.id, raw.key, self.headers, raw.content_type, raw.published_at, raw.id_source)
        message: Message = make(Message, fields)
        return message

    def __repr__(self) -> str:
        return f"Received(id={self._raw.id!r})"


class Deliveries(Sequence[Received]):
    """What a transaction has taken in so far. Iterating takes in more, until the transaction is full."""

    def __init__(self, transaction: Transaction, first: Sequence[Incoming]) -> None:
        self._transaction = transaction
        self._got = [Received(raw) for raw in first]

    def __iter__(self) -> Iterator[Received]:
        got = self._got
        seen = 0
        while seen < len(got):
            until = len(got)
            yield from got[seen:until]
            seen = until
            if seen == len(got):
                got += [Received(raw) for raw in self._transaction._more()]

    def __len__(self) -> int:
        return len(self._got)

    @overload
    def __getitem__(self, place: int) -> Received: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Received]: ...
    def __getitem__(self, place: int | slice) -> Received | Sequence[Received]:
        return self._got[place]


class Transaction:
    """Enter it with `with`: leaving the block commits it, an exception in it aborts all of it.

    `state`: `received`, `open` inside the block, then `committed`, `aborted` (nothing happened, its messages come
    again) or `unknown` (they come again if it did not happen).
    """

    def __init__(
        self, owner: Transactions, transactor: Transactor, raws: Sequence[Incoming], condemned: Sequence[Incoming]
    ) -> None:
        self.state: State = "received"
        self.deliveries = Deliveries(self, raws)
        self._owner = owner
        self._transactor = transactor
        self._send = transactor.send
        self._condemned = list(condemned)
        self._began = time.monotonic()
        self._bytes = sum(map(_SIZE, raws))
        self._lost: BrokerkitError | None = None

    def send(
        self,
        topic: str,
        body: bytes,
        *,
        id: str | None = None,
        key: str | None = None,
        headers: Headers | None = None,
        content_type: str | None = None,
    ) -> Message:
        """Adds a message, visible to others only after the commit. Returns it, for its id."""
        if self.state != "open":
            raise self._misused()
        message = outgoing(body, id, key, headers, content_type)
        try:
            self._send(topic, (message,))
        except (ConnectionLost, LeaseLost) as error:
            self._lost = error
            raise
        return message

    @property
    def connection(self) -> Any:
        """The store's connection; there is none without `store=`."""
        raise NotSupported("this transaction is the broker's own and has no database connection: pass store=")

    def __enter__(self) -> Transaction:
        if self.state != "received":
            raise self._misused()
        self.state = "open"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        return self._owner._leave(self, error)

    def _more(self) -> Sequence[Incoming]:
        """The next messages of this transaction; none when it is full, or nothing comes."""
        if self.state != "open" or self._lost is not None:
            return ()
        try:
            raws = self._owner._take_more(self)
        except (ConnectionLost, LeaseLost) as error:
            self._lost = error
            raise
        self._bytes += sum(map(_SIZE, raws))
        return raws

    def _misused(self) -> BrokerkitError:
        if self.state == "received":
            return ConfigurationError("this transaction is not open: use it inside `with transaction:`")
        if self.state == "open":
            return ConfigurationError("this transaction is open already: transactions do not nest")
        return Closed(f"this transaction has ended ({self.state}): take the next one")


class Transactions:
    """Iterate it: one Transaction after another, each entered with `with`. Not thread-safe; a context manager."""

    def __init__(
        self,
        driver: Driver,
        topics: Sequence[str],
        subscription: Subscription,
        report: Reporter,
        *,
        instance: str | None,
        on_error: Literal["raise"] | Retry,
        max_messages: int,
        timeout: float,
        max_bytes: int = 64 * 1024 * 1024,
        max_seconds: float = 0.0,
    ) -> None:
        self._driver = driver
        self._topics = topics
        self._subscription = subscription
        self._report = report
        self._instance = instance
        self._on_error = on_error
        self._max = max_messages
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._timeout = timeout
        self._trial = _Trial(on_error, max_messages)
        self._stopping = False
        self._born = _fork.generation
        self._open_transaction = False
        self._current: Transaction | None = None
        self._waits = backoffs()
        self._not_before = 0.0
        self._transactor: Transactor | None = self._open()

    def receive(self, timeout: float | None = None) -> Transaction | None:
        """The next batch as a transaction, or None when none came within `timeout` seconds."""
        _fork.check(self._born, "transactions object")
        if self._stopping:
            raise Closed("these transactions are closed")
        if self._current is not None and self._current.state in ("received", "open"):
            raise ConfigurationError("the last transaction is not over: transactions do not nest, leave it first")
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        transactor = self._rested(deadline)
        if transactor is None:
            return None
        try:
            if not self._open_transaction:
                transactor.begin()
                self._open_transaction = True
            raws = transactor.receive(self._room(0), max(0.0, deadline - time.monotonic()))
        except (ConnectionLost, LeaseLost) as error:
            self._undo(transactor, error)
            return None
        if not raws:
            return None
        good, condemned = self._trial.sort(raws)
        transaction = self._current = Transaction(self, transactor, good, condemned)
        if good:
            return transaction
        with transaction:
            self._current = None
        return None

    def __iter__(self) -> Iterator[Transaction]:
        while not self._stopping:
            transaction = self.receive()
            if transaction is not None:
                yield transaction

    @property
    def closed(self) -> bool:
        return self._stopping and self._transactor is None

    def stop(self) -> None:
        """Ends the iteration after the current transaction. Safe to call from a signal handler."""
        self._stopping = True

    def close(self, timeout: float = 30.0) -> None:
        """Aborts what is open and ends the session. Idempotent."""
        self._stopping = True
        if self._current is not None and self._current.state in ("received", "open"):
            self._current.state = "aborted"
        transactor, self._transactor = self._transactor, None
        if transactor is not None:
            if self._open_transaction:
                self._open_transaction = False
                try:
                    transactor.abort()
                except BrokerkitError as error:
                    self._report(EventKind.UNFINISHED, f"the open transaction could not be aborted: {error}")
            transactor.close(timeout)

    def __enter__(self) -> Transactions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ taking in

    def _room(self, taken: int) -> int:
        most = self._trial.most
        return most - taken if self._max_seconds <= 0 else min(_CHUNK, most - taken)

    def _take_more(self, transaction: Transaction) -> Sequence[Incoming]:
        room = self._room(len(transaction.deliveries) + len(transaction._condemned))
        left = transaction._began + self._max_seconds - time.monotonic()
        if self._max_seconds <= 0 or room <= 0 or left <= 0 or transaction._bytes >= self._max_bytes or self._stopping:
            return ()
        good, condemned = self._trial.sort(transaction._transactor.receive(room, min(left, _IDLE)))
        transaction._condemned += condemned
        return good

    # ------------------------------------------------------------ the ends of a transaction

    def _leave(self, transaction: Transaction, error: BaseException | None) -> bool:
        lost = transaction._lost
        if transaction.state != "open":  # closed inside its own block
            return False
        if lost is not None:
            transaction.state = "aborted"
            self._undo(transaction._transactor, lost)
            return error is None or error is lost
        if error is None:
            return self._commit(transaction)
        transaction.state = "aborted"
        self._abort(transaction._transactor)
        return isinstance(error, Exception) and self._again(transaction, error)

    def _commit(self, transaction: Transaction) -> bool:
        transactor = transaction._transactor
        raws = [received._raw for received in transaction.deliveries._got]
        try:
            transactor.settle([raw.token for raw in raws], self._trial.rejects(transaction._condemned))
            transactor.commit()
        except ConnectionLost as error:
            transaction.state = "unknown"
            self._undo(transactor, error)
        except LeaseLost as error:
            transaction.state = "aborted"
            self._undo(transactor, error)
        except SendRefused as error:
            transaction.state = "aborted"
            self._abort(transactor)
            if not self._again(transaction, error):
                raise
        except BaseException:
            transaction.state = "aborted"
            self._abort(transactor)
            raise
        else:
            transaction.state = "committed"
            self._open_transaction = False
            self._waits = backoffs()
            for text in self._trial.passed(raws, transaction._condemned):
                self._report(EventKind.DEAD_LETTERED, text)
        return False

    def _again(self, transaction: Transaction, error: Exception) -> bool:
        """Whether the user's exception is swallowed, because what it was about runs again or is poison."""
        if isinstance(self._on_error, str):
            return False
        return self._trial.failed([received._raw for received in transaction.deliveries._got], error)

    def _abort(self, transactor: Transactor) -> None:
        self._open_transaction = False
        try:
            transactor.abort()
        except BrokerkitError as error:
            self._discard(str(error))

    def _undo(self, transactor: Transactor, error: BrokerkitError) -> None:
        """After an error of the broker's. What happened, it knows: what is still ours is handed out again."""
        self._open_transaction = False
        self._not_before = time.monotonic() + next(self._waits)
        try:
            transactor.abort()
        except BrokerkitError as worse:
            self._discard(str(worse))
        else:
            self._report(EventKind.LOST, f"a transaction was not committed, or nobody can tell: {error}")

    # ------------------------------------------------------------ sessions

    def _open(self) -> Transactor:
        transactor = self._driver.transactor(self._topics, self._subscription, instance=self._instance)
        longest = transactor.longest
        if longest is not None and self._max_seconds >= longest:
            transactor.close(5.0)
            raise ConfigurationError(
                f"max_seconds={self._max_seconds:g} is as long as the broker keeps a transaction open ({longest:g} s): "
                "take fewer seconds"
            )
        self._instance = transactor.instance or self._instance
        return transactor

    def _discard(self, reason: str) -> None:
        self._open_transaction = False
        self._report(EventKind.DISCONNECTED, reason)
        transactor, self._transactor = self._transactor, None
        if transactor is not None:
            transactor.close(1.0)

    def _rested(self, deadline: float) -> Transactor | None:
        """The session, after the pause that follows a failure; a new one where there is none. None when the deadline
        came first."""
        while not self._stopping:
            now = time.monotonic()
            if self._not_before > now:
                time.sleep(max(0.0, min(self._not_before, deadline) - now))
                if self._not_before > deadline:
                    return None
            if self._transactor is not None:
                return self._transactor
            try:
                self._transactor = self._open()
            except ConnectionLost:
                self._not_before = time.monotonic() + next(self._waits)
            else:
                self._report(EventKind.RECONNECTED, "transactions go on")
        return None


class _Trial:
    """Finds the message that fails: how many may run together, which have failed alone, which are condemned."""

    def __init__(self, policy: Literal["raise"] | Retry, most: int) -> None:
        self._policy = policy
        self._max = most
        self.most = most
        self._suspects: set[Hashable] = set()
        self._alone: dict[Hashable, int] = {}
        self._condemned: dict[Hashable, str] = {}

    def sort(self, raws: Sequence[Incoming]) -> tuple[Sequence[Incoming], Sequence[Incoming]]:
        """Those that the user gets to see, and those that go to the dead letters."""
        if not self._condemned:
            return raws, ()
        good = [raw for raw in raws if _key(raw) not in self._condemned]
        return good, [raw for raw in raws if _key(raw) in self._condemned]

    def rejects(self, condemned: Sequence[Incoming]) -> Sequence[Reject]:
        return [Reject(raw.token, self._condemned[_key(raw)]) for raw in condemned]

    def failed(self, raws: Sequence[Incoming], error: Exception) -> bool:
        """Whether to go on; False when this error is the user's to see."""
        assert isinstance(self._policy, Retry)
        self._suspects = {_key(raw) for raw in raws}
        self.most = max(1, len(raws) // 2)
        if len(raws) != 1:
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

    def passed(self, raws: Sequence[Incoming], condemned: Sequence[Incoming]) -> Iterator[str]:
        """They are committed; a sentence for each dead letter."""
        if self._suspects:
            for raw in raws:
                self._suspects.discard(_key(raw))
                self._alone.pop(_key(raw), None)
            if not self._suspects:
                self._over()
        for raw in condemned:
            yield f"message {raw.id}: {self._condemned.pop(_key(raw))}"

    def _over(self) -> None:
        self._suspects.clear()
        self.most = self._max


def _key(raw: Incoming) -> Hashable:
    """One stored copy; an id may be there twice."""
    return raw.position or raw.id
