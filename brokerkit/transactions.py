"""The broker's own transactions: messages in, messages out, all of it committed together or not at all.

One owner thread. The source of what is promised is the driver's Transactor. What is the same on every broker is here:
how much one transaction takes in, what is undone after which error, when a session is begun anew.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Literal, overload

from brokerkit.driver import Driver, Incoming, Subscription, Token, Transactor
from brokerkit.errors import (
    BrokerkitError,
    ConfigurationError,
    ConnectionLost,
    LeaseLost,
    NotSupported,
    SendRefused,
)
from brokerkit.events import EventKind, Reporter, backoffs
from brokerkit.message import Headers, Received, checked
from brokerkit.transacting import IDLE, Block, Loop, Retry, copy_key

_CHUNK = 500
"""Messages asked for at a time while a transaction that is limited by time or bytes goes on."""
_SIZE = attrgetter("size")


class Deliveries(Sequence[Received]):
    """What a transaction has taken in so far, all of it kept until it ends. Iterating takes in more, until the
    transaction is full."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._got = transaction._kept

    def __iter__(self) -> Iterator[Received]:
        got = self._got
        seen = 0
        while seen < len(got):
            until = len(got)
            yield from got[seen:until]
            seen = until
            if seen == len(got):
                got += self._transaction._more()

    def __len__(self) -> int:
        return len(self._got)

    @overload
    def __getitem__(self, place: int) -> Received: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Received]: ...
    def __getitem__(self, place: int | slice) -> Received | Sequence[Received]:
        return self._got[place]


class Transaction(Block):
    """Enter it with `with`: leaving the block commits it, an exception in it aborts all of it.

    `state`: `received`, `open` inside the block, then `committed`, `aborted` (nothing happened, its messages come
    again) or `unknown` (they come again if it did not happen). `taken`: how many messages it has taken in so far.
    """

    def __init__(
        self, owner: Transactions, transactor: Transactor, raws: Sequence[Incoming], condemned: Sequence[Incoming]
    ) -> None:
        super().__init__(owner)
        self.taken = len(raws) + len(condemned)
        self._kept: list[Incoming] = list(raws)
        self._tokens: list[Token] = [raw.token for raw in raws]
        self._keys: list[Hashable] = [*map(copy_key, raws)] if owner._trial.needs_keys else []
        self.deliveries = Deliveries(self)
        self._owner: Transactions = owner
        self._transactor = transactor
        self._send = transactor.send
        self._condemned = list(condemned)
        self._began = time.monotonic()
        self._bytes = sum(map(_SIZE, raws))
        self._lost: BrokerkitError | None = None

    def stream(self) -> Iterator[Received]:
        """As iterating `deliveries`, but what was handed out is let go and is in `deliveries` no more: a transaction
        of a second takes in 100,000 messages, and keeping them costs about as much time as copying them."""
        kept = self._kept
        while kept:
            batch = kept[::-1]
            kept.clear()
            try:
                while batch:
                    yield batch.pop()
            finally:  # left early: the rest is still to be had
                kept[:0] = batch[::-1]
            if not kept:
                kept += self._more()

    def send(
        self,
        topic: str,
        body: bytes,
        *,
        id: str | None = None,
        key: str | None = None,
        headers: Headers | None = None,
        content_type: str | None = None,
    ) -> str:
        """Adds a message, visible to others only after the commit. Returns its id."""
        if self.state != "open":
            raise self._misused()
        fields = checked(body, id, key, headers, content_type, 0)
        try:
            self._send(topic, fields)
        except (ConnectionLost, LeaseLost) as error:
            self._lost = error
            raise
        return fields[1]

    @property
    def connection(self) -> Any:
        """The store's connection; there is none without `store=`."""
        raise NotSupported("this transaction is the broker's own and has no database connection: pass store=")

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
        self.taken += len(raws)
        self._tokens += [raw.token for raw in raws]
        if self._owner._trial.needs_keys:
            self._keys += map(copy_key, raws)
        return raws


class Transactions(Loop[Transaction]):
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
        super().__init__(on_error, max_messages, max_bytes, max_seconds, timeout)
        self._driver = driver
        self._topics = topics
        self._subscription = subscription
        self._report = report
        self._instance = instance
        self._open_transaction = False
        self._transactor: Transactor | None = self._open()

    def _next(self, deadline: float) -> Transaction | None:
        if not self._rested(deadline) or (transactor := self._transactor) is None:
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
        transaction = Transaction(self, transactor, good, condemned)
        if good:
            return transaction
        with transaction:
            pass
        return None

    @property
    def closed(self) -> bool:
        return self._stopping and self._transactor is None

    def close(self, timeout: float = 30.0) -> None:
        """Aborts what is open and ends the session. Idempotent."""
        self._end_current()
        transactor, self._transactor = self._transactor, None
        if transactor is not None:
            if self._open_transaction:
                self._open_transaction = False
                try:
                    transactor.abort()
                except BrokerkitError as error:
                    self._report(EventKind.UNFINISHED, f"the open transaction could not be aborted: {error}")
            transactor.close(timeout)

    # ------------------------------------------------------------ taking in

    def _room(self, taken: int) -> int:
        most = self._trial.most
        return most - taken if self._max_seconds <= 0 else min(_CHUNK, most - taken)

    def _take_more(self, transaction: Transaction) -> Sequence[Incoming]:
        room = self._room(transaction.taken)
        left = transaction._began + self._max_seconds - time.monotonic()
        if self._max_seconds <= 0 or room <= 0 or left <= 0 or transaction._bytes >= self._max_bytes or self._stopping:
            return ()
        good, condemned = self._trial.sort(transaction._transactor.receive(room, min(left, IDLE)))
        transaction._condemned += condemned
        transaction.taken += len(condemned)
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
        try:
            transactor.settle(transaction._tokens, self._trial.rejects(transaction._condemned))
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
            for text in self._trial.passed(transaction._keys, transaction._condemned):
                self._report(EventKind.DEAD_LETTERED, text)
        return False

    def _again(self, transaction: Transaction, error: Exception) -> bool:
        """Whether the user's exception is swallowed, because what it was about runs again or is poison."""
        if isinstance(self._on_error, str):
            return False
        return self._trial.failed(transaction._keys, error)

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

    def _connected(self) -> None:
        if self._transactor is None:
            self._transactor = self._open()
            self._report(EventKind.RECONNECTED, "transactions go on")
