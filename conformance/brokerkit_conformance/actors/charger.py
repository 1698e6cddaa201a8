"""Charges what it receives, in a store, in a process of its own: `python -m brokerkit_conformance.actors.charger`.

Specification: `url`, `settings`, `actor`, `journal`, `topics`, `subscription`, `store` (URL), `books` (whose tables),
`options` (passed to `Broker.transactions`, or to `Broker.consumer`), `drain`, `handler`:

- `shape`: `transactions` (of the library), `inbox` (a transaction of its own, with the inbox in it) or `forgetful` (a
  transaction of its own, and a set in this process).
- `stop_at` {point, after}: stands still after so many charges at `before_commit` (the charges are in the open
  transaction), at `after_commit` (and nothing is acked), or, not of the library's shape, at `before_begin`.
- `work`: seconds that each charge takes. `batch`: messages asked for at once.

Commands: `close`. SIGTERM: clean shutdown.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from brokerkit.errors import SettleError
from brokerkit.once import Inbox
from brokerkit.once.stores import store_for
from brokerkit_conformance.actors.stage import Stage
from brokerkit_conformance.books import add_to_balances, charge

_ENDS = {"committed": "ok", "aborted": "fail", "unknown": "info"}
_CONFLICTS = 20


class ChargerActor:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.spec = stage.spec
        self.handler: dict[str, Any] = self.spec.get("handler", {})
        self.batch = int(self.handler.get("batch", 20))
        self.charged = 0
        self.count = 0
        self._stop_at = self.handler.get("stop_at")

    def run(self) -> None:
        with self.stage.connect() as broker:
            if self.handler.get("shape", "transactions") == "transactions":
                self._in_transactions(broker)
            else:
                self._in_its_own(broker)
        self.stage.say("DONE", "close", self.charged)

    @property
    def going_on(self) -> bool:
        return not self.stage.stopping.is_set() and self.stage.commands.empty()

    # ------------------------------------------------------------ the library's transactions

    def _in_transactions(self, broker: Any) -> None:
        options = {"max_messages": self.batch, **self.spec.get("options", {})}
        with broker.transactions(
            *self.spec["topics"], subscription=self.spec["subscription"], store=self.spec["store"], **options
        ) as transactions:
            self._stop_before_acks(transactions)
            self.stage.say("READY")
            while self.going_on:
                transaction = transactions.receive(0.25)
                if transaction is not None:
                    self._one(transaction)

    def _one(self, transaction: Any) -> None:
        name = self._named()
        with transaction as tx:
            for delivery in tx.deliveries:
                self._received(delivery)
            self._charge(tx.connection, tx.deliveries, name)
        self.stage.journal.write("txn", _ENDS[transaction.state], txn=name)

    def _stop_before_acks(self, transactions: Any) -> None:
        """The commit and the acks are one step of the library's: the line between them is in there."""
        settle = transactions._settle

        def stopping(batch: Sequence[Any], failed: Any) -> None:
            self._maybe_stop("after_commit", batch[-1].id)
            settle(batch, failed)

        transactions._settle = stopping

    # ------------------------------------------------------------ a transaction of its own

    def _in_its_own(self, broker: Any) -> None:
        store = store_for(self.spec["store"])
        connection = store.connect(self.spec["store"])
        seen: set[str] = set()
        # The name that the library's transactions give it, so that both shapes are one consumer.
        name = f"{self.spec['topics'][0]}--{self.spec['subscription']}"
        inbox = Inbox(name) if self.handler["shape"] == "inbox" else None
        with broker.consumer(
            *self.spec["topics"], subscription=self.spec["subscription"], **self.spec.get("options", {})
        ) as consumer:
            self.stage.say("READY")
            while self.going_on:
                batch = consumer.receive(self.batch, 0.25)
                if not batch:
                    continue
                for delivery in batch:
                    self._received(delivery)
                self._maybe_stop("before_begin", batch[-1].id)
                self._book(store, connection, batch, inbox, seen)
                self._maybe_stop("after_commit", batch[-1].id)
                self._ack(batch)
        store.close(connection)

    def _book(self, store: Any, connection: Any, batch: Sequence[Any], inbox: Inbox | None, seen: set[str]) -> None:
        """Charges what is new, in one transaction; again when it lost against another one."""
        name = self._named()
        for conflicts in range(_CONFLICTS + 1):
            try:
                store.begin(connection)
                fresh = inbox.fresh(connection, batch) if inbox is not None else _unseen(batch, seen)
                self._charge(connection, fresh, name)
                store.commit(connection)
                break
            except Exception as error:
                store.rollback(connection)
                if conflicts == _CONFLICTS or not store.conflict(error):
                    raise
        seen.update(delivery.id for delivery in batch)
        self.stage.journal.write("txn", "ok", txn=name)

    def _ack(self, batch: Sequence[Any]) -> None:
        for delivery in batch:
            try:
                delivery.ack()
            except SettleError as error:
                self.stage.journal.write("note", text=f"{delivery.id}: {type(error).__name__}: {error}")

    # ------------------------------------------------------------ both

    def _named(self) -> str:
        self.count += 1
        name = f"{self.stage.actor}:{self.count}"
        self.stage.journal.write("txn", "invoke", txn=name)
        return name

    def _received(self, delivery: Any) -> None:
        self.stage.received(delivery, self.spec["subscription"], drain=bool(self.spec.get("drain")))

    def _charge(self, connection: Any, deliveries: Sequence[Any], name: str) -> None:
        for delivery in deliveries:
            charge(connection, self.spec["books"], delivery.id, self.stage.actor, time.monotonic_ns())
            if work := self.handler.get("work"):
                time.sleep(work)
        add_to_balances(connection, self.spec["books"], [delivery.id for delivery in deliveries])
        self.charged += len(deliveries)
        if deliveries:
            self._maybe_stop("before_commit", deliveries[-1].id)
        self.stage.journal.write("commit", "invoke", txn=name)

    def _maybe_stop(self, point: str, id: str) -> None:
        stop = self._stop_at
        if stop and stop["point"] == point and self.charged >= stop.get("after", 0):
            self._stop_at = None
            self.stage.barrier(point, id)


def _unseen(batch: Sequence[Any], seen: set[str]) -> list[Any]:
    """What this process has not seen, each once."""
    first = {delivery.id: delivery for delivery in batch if delivery.id not in seen}
    return list(first.values())


def main() -> None:
    ChargerActor(Stage()).run()


if __name__ == "__main__":
    main()
