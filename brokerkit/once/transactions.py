"""Transactions of a store: deliveries in; rows, messages for the outbox and marks in the inbox committed together;
acks after that.

One owner thread. What was taken and is not settled stays in hand until it is: after a conflict with another
transaction, a lost connection or a commit whose end is not known the same deliveries run again, and the inbox tells
which of them happened.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Literal

from brokerkit import _fork
from brokerkit.consumer import Consumer, Delivery
from brokerkit.errors import Closed, ConfigurationError, ConnectionLost, SettleError
from brokerkit.events import EventKind, Reporter, backoffs
from brokerkit.guarantees import Claim
from brokerkit.message import Headers, Message, Received
from brokerkit.once.checkpoint import Checkpoint
from brokerkit.once.inbox import unseen
from brokerkit.once.keys import derived_key
from brokerkit.once.outbox import checked_name, row
from brokerkit.once.stores import store_for
from brokerkit.once.stores.contract import Durability, Row, Store, SwallowedError, stored_id
from brokerkit.transacting import IDLE, Block, Loop, Retry, copy_key

_BURIAL = 30.0
"""Seconds that a message may take to get to the dead letters before the checkpoint moves over it."""
_CONFLICTS = 20
"""After so many conflicts in a row with other transactions the error is the user's to see."""


class StoreTransaction(Block):
    """Enter it with `with`: leaving the block commits it, an exception in it undoes all of it.

    `state`: `received`, `open` inside the block, then `committed`, `aborted` (nothing happened, its messages come
    again) or `unknown` (they come again if it did not happen).
    """

    def __init__(self, owner: StoreTransactions, batch: Sequence[Delivery], fresh: Sequence[Delivery]) -> None:
        super().__init__(owner)
        self.deliveries: Sequence[Received] = tuple(delivery._raw for delivery in fresh)
        """What this consumer has not seen yet, each message once."""
        self._owner: StoreTransactions = owner
        self._batch = batch
        self._fresh = fresh
        self._failed: dict[str, tuple[Delivery, Exception]] = {}
        self._outgoing: list[Row] = []
        self._current: Received | None = None
        self._steps: Counter[tuple[str, str]] = Counter()

    @property
    def connection(self) -> Any:
        """The database's own connection (psycopg's, sqlite3's), inside the transaction that brokerkit ends."""
        self._check_open()
        return self._owner._connection

    def each(self) -> Iterator[Each]:
        """The deliveries, each with a savepoint: `for each in tx.each(): with each as delivery: …`.

        With `on_error=Retry(…)`, an exception in the inner block undoes that delivery alone; it runs again, and goes
        to the dead letters after so many attempts. Costs two round trips a delivery."""
        for delivery, received in zip(self._fresh, self.deliveries, strict=True):
            self._check_open()
            yield Each(self, delivery, received)

    def send(
        self,
        topic: str,
        body: bytes,
        *,
        id: str | None = None,
        key: str | None = None,
        headers: Headers | None = None,
        content_type: str | None = None,
        cause: Received | None = None,
        step: str | None = None,
    ) -> str:
        """Adds a message to the outbox; it leaves after the commit, by a relay. Returns its id.

        Without `id`, it derives from the message that is the `cause`, so that a message that is handled again yields
        the same outputs: by default the one whose block of `each` this is, or the only one of the transaction. `step`
        names what this message is among those of one cause and topic (default: its number among them). Without a
        cause, or with one that nothing recognises (`id_source` is `none`), the id is a fresh one. Raises
        ConfigurationError for a wrong argument."""
        self._check_open()
        if id is None:
            id = self._derived(topic, cause or self._current, step)
        message = Message(body, id, key, headers, content_type)
        self._outgoing.append(row(topic, message))
        return message.id

    def _derived(self, topic: str, cause: Received | None, step: str | None) -> str | None:
        if cause is None and len(self.deliveries) == 1:
            cause = self.deliveries[0]
        if cause is None or cause.id_source == "none":
            return None
        if step is None:
            self._steps[cause.id, topic] += 1
            step = f"#{self._steps[cause.id, topic]}"
        return derived_key(f"{self._owner._name(cause.topic)}>{topic}", cause.id, step)


class Each:
    """One delivery of a transaction and a savepoint before it; see `StoreTransaction.each`."""

    def __init__(self, transaction: StoreTransaction, delivery: Delivery, received: Received) -> None:
        self._transaction = transaction
        self._delivery = delivery
        self._received = received
        self._before = 0

    def __enter__(self) -> Received:
        owner = self._transaction._owner
        owner._store.execute(owner._connection, "savepoint brokerkit_each")
        self._before = len(self._transaction._outgoing)
        self._transaction._current = self._received
        return self._received

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        owner = self._transaction._owner
        store, connection = owner._store, owner._connection
        self._transaction._current = None
        if error is None and store.failed(connection):
            error = SwallowedError()
            if not owner._bears(error):
                raise error
        if error is None:
            store.execute(connection, "release savepoint brokerkit_each")
            return False
        if not isinstance(error, Exception) or not owner._bears(error):
            return False
        store.execute(connection, "rollback to savepoint brokerkit_each")
        store.execute(connection, "release savepoint brokerkit_each")
        stored = stored_id(self._delivery.id)
        store.forget(connection, owner._name(self._delivery.topic), stored)
        self._transaction._failed[stored] = self._delivery, error
        del self._transaction._outgoing[self._before :]
        return True


class StoreTransactions(Loop[StoreTransaction]):
    """Iterate it: one StoreTransaction after another, each entered with `with`. Not thread-safe; a context manager.

    `receive` begins the database's transaction. It raises NotFound when the tables are gone, and the database's own
    errors; an unreachable store is waited for.
    """

    def __init__(
        self,
        consumer: Consumer,
        url: str,
        report: Reporter,
        *,
        on_error: Literal["raise"] | Retry,
        max_messages: int,
        max_bytes: int,
        max_seconds: float,
        timeout: float,
        outbox: str,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        super().__init__(on_error, max_messages, max_bytes, max_seconds, timeout)
        self._consumer = consumer
        self._url = url
        self._outbox = checked_name(outbox)
        self._report = report
        self._checkpoint = checkpoint
        self._attempts: Counter[Hashable] = Counter()
        self._hand: list[Delivery] = []
        self._closed = False
        self._conflicts = 0
        self._nameless = False
        self._store: Store = store_for(url)
        self._connection: Any = None
        if isinstance(on_error, Retry) and on_error.dead_letter and consumer._dead_letter(consumer._session) is None:
            raise ConfigurationError(
                f"on_error=Retry(…) moves poison to the dead letters, and subscription {consumer.subscription!r} has "
                "none: declare it with attempts= or dead_letter=, or say Retry(dead_letter=False)"
            )
        self._connect()

    @property
    def durability(self) -> Durability:
        """What a commit in this store survives, as its settings say; read at each connect."""
        return self._durability

    @property
    def claim(self) -> Claim:
        """What may happen to the effects in this store, whatever fails on the way."""
        if self._checkpoint is not None:
            return self._durability.claim("its place in its partition: what a producer sent twice is there twice")
        return self._durability.claim()

    def _next(self, deadline: float) -> StoreTransaction | None:
        if not self._rested(deadline):
            return None
        batch = self._batch(deadline)
        if not batch:
            return None
        fresh = self._begun(batch)
        if fresh is None:
            return None
        if not fresh:
            self._store.rollback(self._connection)
            self._settle(batch, {})
            return None
        return StoreTransaction(self, batch, fresh)

    @property
    def closed(self) -> bool:
        return self._closed

    def stop(self) -> None:
        """Ends the iteration after the current transaction. Safe to call from a signal handler."""
        super().stop()
        self._consumer.stop()

    def close(self, timeout: float = 30.0) -> None:
        """Undoes what is open, gives back what is in hand, ends both sessions. Idempotent."""
        if self._closed:
            return
        _fork.check(self._born, "transactions object")
        self._closed = True
        self._end_current()
        self._disconnect()
        self._consumer.close(timeout)

    # ------------------------------------------------------------ taking in

    def _batch(self, deadline: float) -> list[Delivery]:
        """What runs next: what is in hand and still ours, or what comes."""
        self._hand = [delivery for delivery in self._hand if delivery.state == "pending" and not delivery.lease.lost]
        if not self._hand:
            self._take(deadline)
        if self._trial.searching:
            for delivery in self._hand.copy():
                if self._trial.sort((delivery._raw,))[1]:
                    self._condemn(delivery)
                    self._hand.remove(delivery)
        return self._hand[: self._trial.most]

    def _take(self, deadline: float) -> None:
        most = self._trial.most
        self._hand = self._received(most, deadline - time.monotonic())
        until = time.monotonic() + self._max_seconds
        more = bool(self._hand) and self._max_seconds > 0
        while more and len(self._hand) < most:
            left = until - time.monotonic()
            if left <= 0 or sum(delivery._raw.size for delivery in self._hand) >= self._max_bytes:
                return
            some = self._received(most - len(self._hand), min(left, IDLE))
            self._hand += some
            more = bool(some)

    def _received(self, most: int, timeout: float) -> list[Delivery]:
        try:
            return self._consumer.receive(most, max(0.0, timeout))
        except Closed:
            if self._stopping:  # a signal came in between
                return []
            raise

    def _begun(self, batch: Sequence[Delivery]) -> list[Delivery] | None:
        """Begins, and marks the batch as seen. Returns what was not; None when it has to be tried again."""
        try:
            if self._checkpoint is not None:
                return self._checkpoint.fresh(self._connection, batch)
            fresh = {
                id(delivery)
                for number, part in enumerate(self._parts(batch))
                for delivery in self._unseen(*part, begins=number == 0)
            }
        except Exception as error:
            if self._gone(error) or self._again_after_conflict(error):
                return None
            self._store.rollback(self._connection)
            if self._store.missing_table(error):
                raise self._store.no_tables(self._url) from error
            raise
        except BaseException:
            self._store.rollback(self._connection)
            raise
        return [delivery for delivery in batch if id(delivery) in fresh]

    def _parts(self, batch: Sequence[Delivery]) -> Sequence[tuple[str, Sequence[Delivery]]]:
        """The batch by topic, in the same order everywhere, so that overlapping batches do not deadlock."""
        topics = {delivery.topic for delivery in batch}
        if len(topics) == 1:
            return [(topics.pop(), batch)]
        return [(topic, [delivery for delivery in batch if delivery.topic == topic]) for topic in sorted(topics)]

    def _unseen(self, topic: str, deliveries: Sequence[Delivery], *, begins: bool) -> Sequence[Delivery]:
        if not self._nameless and any(delivery.id_source == "none" for delivery in deliveries):
            self._nameless = True
            self._report(
                EventKind.TROUBLE,
                f"messages of {topic!r} have no id by which a repetition is recognised: their effects may double",
            )
        return unseen(self._store, self._connection, self._name(topic), deliveries, begins=begins)

    def _name(self, topic: str) -> str:
        return effects_of(topic, self._consumer.subscription)

    # ------------------------------------------------------------ the ends of a transaction

    def _leave(self, transaction: StoreTransaction, error: BaseException | None) -> bool:
        if transaction.state != "open":  # closed inside its own block
            return False
        if error is None:
            return self._commit(transaction)
        transaction.state = "aborted"
        if not isinstance(error, Exception):
            self._store.rollback(self._connection)
            return False
        return self._gone(error) or self._again_after_conflict(error) or self._user_failed(transaction, error)

    def _commit(self, transaction: StoreTransaction) -> bool:
        try:
            self._write(transaction._outgoing)
            self._store.commit(self._connection)
        except Exception as error:
            if self._store.missing_table(error):
                transaction.state = "aborted"
                self._store.rollback(self._connection)
                raise self._store.no_tables(self._url) from error
            if self._store.lost(self._connection):
                transaction.state = "unknown"
                self._gone(error)
            else:
                transaction.state = "aborted"
                if not self._again_after_conflict(error) and not self._user_failed(transaction, error):
                    raise
        except BaseException:
            transaction.state = "unknown"
            self._disconnect()
            raise
        else:
            transaction.state = "committed"
            if self._checkpoint is not None:
                self._checkpoint.committed()
            self._conflicts = 0
            self._waits = backoffs()
            self._settle(transaction._batch, transaction._failed)
        return False

    def _write(self, rows: Sequence[Row]) -> None:
        """To the outbox; not in a transaction that the block has ended, or spoiled, which the commit tells."""
        if rows and self._store.in_transaction(self._connection) and not self._store.failed(self._connection):
            self._store.write(self._connection, self._outbox, rows)

    def _gone(self, error: Exception) -> bool:
        """Whether the store is; then its connection is given up, and what is in hand waits for the next."""
        if not self._store.lost(self._connection):
            return False
        self._not_before = time.monotonic() + next(self._waits)
        self._disconnect()
        self._report(EventKind.DISCONNECTED, f"the store's connection was lost, its transaction runs again: {error}")
        return True

    def _again_after_conflict(self, error: Exception) -> bool:
        """Whether the transaction lost against another and runs again, whole."""
        if not self._store.conflict(error) or self._conflicts >= _CONFLICTS:
            return False
        self._conflicts += 1
        self._store.rollback(self._connection)
        # Both of two that deadlocked would meet again at once.
        self._not_before = time.monotonic() + min(0.001 * 2**self._conflicts, 0.2)
        return True

    def _user_failed(self, transaction: StoreTransaction, error: Exception) -> bool:
        """Whether the exception is swallowed, because what it was about runs again or is poison."""
        self._conflicts = 0
        self._store.rollback(self._connection)
        if not isinstance(self._on_error, Retry):
            return False
        return self._trial.failed([copy_key(delivery._raw) for delivery in transaction._fresh], error)

    def _bears(self, error: Exception) -> bool:
        """Whether an exception in the block of one delivery is that delivery's alone. A checkpoint cannot leave it
        behind and go on: there all of the transaction runs again."""
        return (
            self._checkpoint is None
            and isinstance(self._on_error, Retry)
            and not self._store.lost(self._connection)
            and not self._store.conflict(error)
            and (self._on_error.dead_letter or self._on_error.attempts > 1)
        )

    def _settle(self, batch: Sequence[Delivery], failed: dict[str, tuple[Delivery, Exception]]) -> None:
        """After the commit: acks what is done, keeps in hand what failed alone, with every copy of it."""
        done = [delivery for delivery in batch if stored_id(delivery.id) not in failed] if failed else batch
        gone = {id(delivery) for delivery in done}
        self._hand = [delivery for delivery in self._hand if id(delivery) not in gone]
        if self._trial.searching:
            list(self._trial.passed([copy_key(delivery._raw) for delivery in done], ()))
        for delivery in done:
            if self._attempts:
                self._attempts.pop(copy_key(delivery._raw), None)
            try:
                delivery.ack()
            except SettleError as error:
                self._report(EventKind.LEASE_LOST, f"its effect is committed and will be recognised: {error}")
        for delivery, failure in failed.values():
            self._failed_alone(delivery, failure)

    def _failed_alone(self, delivery: Delivery, error: Exception) -> None:
        assert isinstance(self._on_error, Retry)
        key = copy_key(delivery._raw)
        self._attempts[key] += 1
        if self._attempts[key] < self._on_error.attempts:
            return
        del self._attempts[key]
        if not self._on_error.dead_letter:
            raise error
        self._hand.remove(delivery)
        self._reject(delivery, f"{type(error).__name__} in {self._on_error.attempts} transactions")

    def _condemn(self, delivery: Delivery) -> None:
        """What bisection found: it is in no transaction any more."""
        [(_, reason)] = self._trial.rejects((delivery._raw,))
        list(self._trial.passed((), (delivery._raw,)))
        self._reject(delivery, reason)
        if self._checkpoint is not None:
            self._await_burial(delivery)

    def _await_burial(self, delivery: Delivery) -> None:
        """A checkpoint that passed a message which is not in the dead letters yet would lose it."""
        until = time.monotonic() + _BURIAL
        while delivery.state == "settling" and time.monotonic() < until:
            self._consumer.flush(1.0)
        if delivery.state == "settling":
            raise ConnectionLost(
                f"message {delivery.id} failed and could not be moved to the dead letters within {_BURIAL:g} s: the "
                "checkpoint stays before it"
            )

    def _reject(self, delivery: Delivery, reason: str) -> None:
        try:
            delivery.reject(reason)
        except SettleError as error:
            self._report(EventKind.LEASE_LOST, f"it comes again before it goes to the dead letters: {error}")

    # ------------------------------------------------------------ the connection

    def _connect(self) -> None:
        self._connection, self._durability = self._store.opened(self._url, self._store.durability)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._store.rollback(connection)
            self._store.close(connection)

    def _connected(self) -> None:
        if self._connection is None:
            self._connect()
            self._report(EventKind.RECONNECTED, "the store answers again")


def effects_of(topic: str, subscription: str) -> str:
    """Whose effects: a message that goes on to another topic under its id is another matter there."""
    return f"{topic}--{subscription}"
