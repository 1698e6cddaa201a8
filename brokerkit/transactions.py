"""Transactions: a batch in, messages out, all of it committed together or not at all.

One owner thread. The source of what is promised is the driver's Transactor: on sqlite one SQL transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from brokerkit import _fork
from brokerkit.driver import Driver, Incoming, Reject, Subscription, Transactor
from brokerkit.errors import BrokerkitError, Closed, ConnectionLost, LeaseLost, NotSupported
from brokerkit.events import EventKind, Reporter, backoffs
from brokerkit.message import Headers, Message, make


@dataclass(frozen=True, slots=True)
class Retry:
    """What to do when a batch fails: abort and run it again, halved until the poison stands alone, which after
    `attempts` runs goes to the dead letters within a transaction of its own (or is raised, when
    `dead_letter` is False)."""

    attempts: int = 5
    dead_letter: bool = True


class Received:
    """A message inside a transaction: settled by the commit, so there is nothing to ack."""

    __slots__ = ("_raw",)

    def __init__(self, raw: Incoming) -> None:
        self._raw = raw

    @property
    def message(self) -> Message:
        raw = self._raw
        headers = {name: value for name, value in raw.headers.items() if not name.startswith("brokerkit-")}
        fields = (raw.body, raw.id, raw.key, headers, raw.content_type, raw.published_at, raw.id_source)
        message: Message = make(Message, fields)
        return message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def __repr__(self) -> str:
        return f"Received(id={self._raw.id!r})"


class Transaction:
    """One batch. Leaving the `with` block commits it; an exception in it aborts all of it."""

    def __init__(self, owner: Transactions, transactor: Transactor, raws: Sequence[Incoming]) -> None:
        self.deliveries: list[Received] = [Received(raw) for raw in raws]
        self._owner = owner
        self._transactor = transactor
        self._raws = raws

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
        message = Message(body, id, key, headers, content_type)
        self._transactor.send(topic, [message])
        return message

    @property
    def connection(self) -> Any:
        """The store's connection; there is none without `store=`."""
        raise NotSupported("this transaction is the broker's own and has no database connection: pass store=")

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        return self._owner._leave(self, error)


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
    ) -> None:
        self._driver = driver
        self._topics = topics
        self._subscription = subscription
        self._report = report
        self._instance = instance
        self._on_error = on_error
        self._max = max_messages
        self._most = max_messages
        self._timeout = timeout
        self._failures = 0
        self._stopping = False
        self._born = _fork.generation
        self._open_transaction = False
        self._transactor: Transactor | None = self._open()

    def receive(self, timeout: float | None = None) -> Transaction | None:
        """The next batch as a transaction, or None when none came within `timeout` seconds."""
        _fork.check(self._born, "transactions object")
        if self._stopping:
            raise Closed("these transactions are closed")
        transactor = self._transactor
        if transactor is None:
            transactor = self._transactor = self._reopen()
        try:
            if not self._open_transaction:
                transactor.begin()
                self._open_transaction = True
            raws = transactor.receive(self._most, self._timeout if timeout is None else timeout)
        except ConnectionLost as error:
            self._discard(str(error))
            return None
        return Transaction(self, transactor, raws) if raws else None

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
        transactor, self._transactor = self._transactor, None
        if transactor is not None:
            if self._open_transaction:
                self._abort(transactor)
            transactor.close(timeout)

    def __enter__(self) -> Transactions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ the ends of a transaction

    def _leave(self, transaction: Transaction, error: BaseException | None) -> bool:
        transactor = transaction._transactor
        if error is None:
            return self._commit(transaction)
        self._abort(transactor)
        if isinstance(self._on_error, str) or not isinstance(error, Exception):
            return False
        return self._again(transaction, error)

    def _commit(self, transaction: Transaction) -> bool:
        transactor = transaction._transactor
        try:
            transactor.settle([raw.token for raw in transaction._raws])
            transactor.commit()
        except (ConnectionLost, LeaseLost) as error:
            # Whether it happened or not, the broker knows: what is still ours is handed out again.
            self._discard(str(error))
            return False
        self._open_transaction = False
        self._most = self._max
        self._failures = 0
        return False

    def _again(self, transaction: Transaction, error: Exception) -> bool:
        """Runs the batch again, halved; a single message that failed often enough is poison. True: swallow."""
        policy = self._on_error
        assert isinstance(policy, Retry)
        count = len(transaction._raws)
        if count > 1:
            self._most = max(1, count // 2)
            self._failures = 0
            return True
        self._failures += 1
        if self._failures < policy.attempts:
            return True
        if not policy.dead_letter:
            return False
        self._dead_letter(transaction._raws[0].id, f"{type(error).__name__} in {policy.attempts} transactions")
        return True

    def _dead_letter(self, id: str, reason: str) -> None:
        transactor = self._transactor
        if transactor is None:
            return
        transactor.begin()
        self._open_transaction = True
        raws = transactor.receive(1, self._timeout)
        if [raw.id for raw in raws] == [id]:
            transactor.settle((), [Reject(raws[0].token, reason)])
            transactor.commit()
            self._open_transaction = False
            self._report(EventKind.DEAD_LETTERED, f"message {id}: {reason}")
        else:
            self._abort(transactor)
        self._failures = 0
        self._most = self._max

    def _abort(self, transactor: Transactor) -> None:
        self._open_transaction = False
        try:
            transactor.abort()
        except BrokerkitError as error:
            self._discard(str(error))

    def _open(self) -> Transactor:
        return self._driver.transactor(self._topics, self._subscription, instance=self._instance)

    def _discard(self, reason: str) -> None:
        self._open_transaction = False
        self._report(EventKind.DISCONNECTED, reason)
        transactor, self._transactor = self._transactor, None
        if transactor is not None:
            transactor.close(1.0)

    def _reopen(self) -> Transactor:
        give_up_at = time.monotonic() + 60.0
        for wait in backoffs():
            try:
                transactor = self._open()
            except ConnectionLost:
                if self._stopping or time.monotonic() > give_up_at:
                    raise
                time.sleep(wait)
                continue
            self._report(EventKind.RECONNECTED, "transactions go on")
            return transactor
        raise AssertionError
