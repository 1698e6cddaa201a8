"""Broken inboxes, transactions, relays and keys of a store, as adapters: what they break is the library's, in the
actor's process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from brokerkit.broker import Broker
from brokerkit.once import Relay, calls, inbox, keys, transactions
from brokerkit.once.checkpoint import Checkpoint
from brokerkit.once.inbox import unseen
from brokerkit.once.keys import Held
from brokerkit.once.stores.contract import Store, Waiting, stored_id

_Unseen = Callable[[Store, Any, str, Sequence[Any]], list[Any]]
"""As `inbox.unseen`, in a transaction that has begun."""


def dedups_in_memory(broker: Broker) -> Broker:
    """What was seen is remembered by the process alone."""
    seen: set[str] = set()

    def remembered(store: Store, connection: Any, consumer: str, deliveries: Sequence[Any]) -> list[Any]:
        fresh = {delivery.id: delivery for delivery in deliveries if delivery.id not in seen}
        seen.update(fresh)
        return list(fresh.values())

    return _asked_instead(broker, remembered)


def marks_in_another_transaction(broker: Broker) -> Broker:
    """The marks are committed before the effects are begun."""

    def alone(store: Store, connection: Any, consumer: str, deliveries: Sequence[Any]) -> list[Any]:
        fresh = unseen(store, connection, consumer, deliveries)
        store.commit(connection)
        store.begin(connection)
        return fresh

    return _asked_instead(broker, alone)


def looks_and_then_marks(broker: Broker) -> Broker:
    """Whether a message was seen is looked up first and marked afterwards, and nobody heeds what the mark says."""

    def looked_up(store: Store, connection: Any, consumer: str, deliveries: Sequence[Any]) -> list[Any]:
        rows = connection.execute(f"select message_id from brokerkit_inbox where consumer = '{consumer}'").fetchall()
        seen = {row[0] for row in rows}
        fresh = {delivery.id: delivery for delivery in deliveries if stored_id(delivery.id) not in seen}
        unseen(store, connection, consumer, list(fresh.values()))
        return list(fresh.values())

    return _asked_instead(broker, looked_up)


def prunes_too_early(broker: Broker) -> Broker:
    """Whatever is in the inbox is forgotten as soon as the next messages come."""

    def forgetful(store: Store, connection: Any, consumer: str, deliveries: Sequence[Any]) -> list[Any]:
        store.prune(connection, -60.0, 1000)
        return unseen(store, connection, consumer, deliveries)

    return _asked_instead(broker, forgetful)


def acks_before_commit(broker: Broker) -> Broker:
    """The broker is told that all is done, and then the store is asked to commit."""
    commit = transactions.StoreTransactions._commit

    def hasty(self: transactions.StoreTransactions, transaction: transactions.StoreTransaction) -> bool:
        self._settle(transaction._batch, transaction._failed)
        self._consumer.flush(5.0)
        return commit(self, transaction)

    transactions.StoreTransactions._commit = hasty  # type: ignore[method-assign]
    return broker


def _asked_instead(broker: Broker, other: _Unseen) -> Broker:
    """The inbox is this one, for the library's transactions and for those of its users."""

    def asked(
        store: Store, connection: Any, consumer: str, deliveries: Sequence[Any], *, begins: bool = False
    ) -> list[Any]:
        if begins:
            store.begin(connection)
        return other(store, connection, consumer, deliveries)

    inbox.unseen = asked
    transactions.unseen = asked  # type: ignore[attr-defined]
    return broker


def moves_before_the_effects(broker: Broker) -> Broker:
    """The checkpoint is committed before the effects are begun."""
    fresh = Checkpoint.fresh

    def alone(self: Checkpoint, connection: Any, batch: Sequence[Any]) -> list[Any]:
        new = fresh(self, connection, batch)
        self._store.commit(connection)
        self._store.begin(connection)
        return new

    Checkpoint.fresh = alone  # type: ignore[method-assign]
    return broker


def trusts_the_broker_s_place(broker: Broker) -> Broker:
    """Whatever the broker hands out is taken for new."""
    Checkpoint.assigned = lambda self, positions: {}  # type: ignore[method-assign]

    def all_of_it(self: Checkpoint, connection: Any, batch: Sequence[Any]) -> list[Any]:
        self._store.begin(connection)
        return list(batch)

    Checkpoint.fresh = all_of_it  # type: ignore[method-assign]
    return broker


def marks_before_confirm(broker: Broker) -> Broker:
    """The relay deletes the rows that it is about to send."""
    hand_over = Relay._hand_over

    def hasty(self: Relay, rows: Sequence[Waiting]) -> None:
        self._store.delete(self._connection, [row[0] for row in rows])
        hand_over(self, rows)

    Relay._hand_over = hasty  # type: ignore[method-assign]
    return broker


def finishes_whoever_holds(broker: Broker) -> Broker:
    """A key is finished without a look at who has it by now."""
    settle = Held._settle

    def unconditional(self: Held, state: Any, result: bytes, connection: Any = None) -> None:
        row = self._keys._store.read(self._keys.name, self.key)
        self._owner = row.owner if row is not None else self._owner
        settle(self, state, result, connection)

    Held._settle = unconditional  # type: ignore[method-assign]
    return broker


def keys_without_fingerprint(broker: Broker) -> Broker:
    """Every request looks the same to a key."""
    keys.fingerprint = lambda request: b"any"
    return broker


def keys_from_the_clock(broker: Broker) -> Broker:
    """A key derives from the time at which it is made."""
    calls.derived_key = lambda consumer, message_id, step: str(time.time_ns())  # type: ignore[attr-defined]
    return broker
