"""Consume, transform, produce in a process of its own: `python -m brokerkit_conformance.actors.copier`.

Specification: `url`, `settings`, `actor`, `journal`, `topics`, `subscription`, `instance`, `outs` (topics, to each
of which every message is sent on), `options` (passed to `Broker.transactions`), `handler`:

- `stop_at` {point, after}: stands still at `mid_transaction` after so many messages, or at `before_commit`.
- `work`: seconds that each message takes. `fails`: raises at the end of so many transactions, the first ones.
- `external`: each message also has an effect that is no part of the transaction.

Commands: `close`. SIGTERM: clean shutdown.
"""

from __future__ import annotations

import time
from typing import Any

from brokerkit_conformance.actors.stage import Stage
from brokerkit_conformance.copying import LEDGER
from brokerkit_conformance.messages import TRANSACTION

_ENDS = {"committed": "ok", "aborted": "fail", "unknown": "info"}


class HandlerFails(Exception):
    """What the handler raises when it is told to."""


class CopierActor:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.spec = stage.spec
        self.handler: dict[str, Any] = self.spec.get("handler", {})
        self.handled = 0
        self.count = 0
        self._fails = int(self.handler.get("fails", 0))
        self._stop_at = self.handler.get("stop_at")

    def run(self) -> None:
        with self.stage.connect() as broker:
            with broker.transactions(
                *self.spec["topics"],
                subscription=self.spec["subscription"],
                instance=self.spec["instance"],
                **self.spec.get("options", {}),
            ) as transactions:
                self.stage.say("READY")
                while not self.stage.stopping.is_set() and self.stage.commands.empty():
                    transaction = transactions.receive(0.25)
                    if transaction is not None:
                        self._copy(transaction)
        self.stage.say("DONE", "close", self.handled)

    def _copy(self, transaction: Any) -> None:
        self.count += 1
        name = f"{self.stage.actor}:{self.count}"
        self.stage.journal.write("txn", "invoke", txn=name)
        try:
            with transaction:
                self._messages(transaction, name)
                if self._fails > 0:
                    self._fails -= 1
                    raise HandlerFails(name)
                self.stage.journal.write("commit", "invoke", txn=name)
        except HandlerFails:
            self.stage.journal.write("note", text=f"the handler failed in {name}")
        self.stage.journal.write("txn", _ENDS[transaction.state], txn=name)

    def _messages(self, transaction: Any, name: str) -> None:
        for delivery in transaction.deliveries:
            self._take(delivery, name)
            if self.handler.get("external"):
                self.stage.journal.write("receive", "ok", delivery.id, subscription=LEDGER)
                self.stage.journal.write("effect", "ok", delivery.id, subscription=LEDGER)
            for out in self.spec["outs"]:
                self.stage.journal.write("put", "ok", delivery.id, txn=name, topic=out)
                transaction.send(
                    out,
                    delivery.body,
                    id=delivery.id,
                    key=delivery.key,
                    headers={**delivery.headers, TRANSACTION: name},
                    content_type=delivery.content_type,
                )
            if work := self.handler.get("work"):
                time.sleep(work)
            self.handled += 1
            self._maybe_stop("mid_transaction", delivery.id)
        self._maybe_stop("before_commit", transaction.deliveries[-1].id)

    def _take(self, delivery: Any, name: str) -> None:
        self.stage.journal.write(
            "take", "ok", delivery.id, txn=name, position=None if delivery.position is None else str(delivery.position)
        )

    def _maybe_stop(self, point: str, id: str) -> None:
        stop = self._stop_at
        if stop and stop["point"] == point and self.handled >= stop.get("after", 0):
            self._stop_at = None
            self.stage.barrier(point, id)


def main() -> None:
    CopierActor(Stage()).run()


if __name__ == "__main__":
    main()
