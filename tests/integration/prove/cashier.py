"""A worker of the payments: charges what comes, two hundred a transaction, until told to stop.

`python cashier.py BROKER TOPIC STORE inbox|no_inbox`. Each payment is a row, and an amount added to an account. With
`no_inbox` the same rows are committed in a transaction of its own before the acks, and nobody looks at ids.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import psycopg

import brokerkit
from brokerkit.errors import SettleError

SUBSCRIPTION = "ledger"
TOGETHER = 200
_ROW = "insert into charges (message_id, account, dollars, published_at) values (%s, %s, %s, %s)"
_ADD = "update accounts set balance = balance + %s where id = %s"

stopping = threading.Event()


class Payment(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def body(self) -> bytes | None: ...
    @property
    def published_at(self) -> int: ...


def charge(db: psycopg.Connection[Any], payments: Sequence[Payment]) -> None:
    rows = []
    added: Counter[int] = Counter()
    for payment in payments:
        account, dollars = json.loads(payment.body or b"")
        rows.append((payment.id, account, dollars, payment.published_at))
        added[account] += dollars
    with db.cursor() as cursor:
        cursor.executemany(_ROW, rows)
        # In one order in every worker: two that wait for each other's accounts would be a deadlock.
        cursor.executemany(_ADD, [(dollars, account) for account, dollars in sorted(added.items())])


def with_inbox(broker: brokerkit.Broker, topic: str, store: str) -> None:
    with broker.transactions(
        topic, subscription=SUBSCRIPTION, store=store, max_messages=TOGETHER, timeout=0.5
    ) as transactions:
        while not stopping.is_set():
            transaction = transactions.receive()
            if transaction is not None:
                with transaction as tx:
                    charge(tx.connection, tx.deliveries)


def without(broker: brokerkit.Broker, topic: str, store: str) -> None:
    with broker.consumer(topic, subscription=SUBSCRIPTION) as consumer, psycopg.connect(store) as db:
        while not stopping.is_set():
            deliveries = consumer.receive(TOGETHER, timeout=0.5)
            charge(db, deliveries)
            db.commit()
            for delivery in deliveries:
                try:
                    delivery.ack()
                except SettleError:
                    continue


def main(url: str, topic: str, store: str, how: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    with brokerkit.connect(url) as broker:
        (with_inbox if how == "inbox" else without)(broker, topic, store)


if __name__ == "__main__":
    main(*sys.argv[1:])
