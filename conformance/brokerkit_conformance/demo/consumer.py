"""A consumer that charges cards, as a process of its own: it is there to be killed.

    python -m brokerkit_conformance.demo.consumer URL LEDGER GUARANTEE DEDUP

It ends in order on SIGTERM, and with its parent.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable

import brokerkit
from brokerkit.once import Inbox
from brokerkit_conformance.demo.books import charge, open_books

CALL_SECONDS = 0.001
"""How long the card company takes to answer."""


INBOX = Inbox("ledger")


def main(url: str, ledger: str, guarantee: str, dedup: str) -> None:
    parent = os.getppid()
    handle: Callable[[sqlite3.Connection, brokerkit.Delivery], None] = _once if dedup == "dedup" else _each_time
    books = open_books(ledger)
    with brokerkit.connect(url) as broker:
        with broker.consumer("payments", subscription="ledger", guarantee=guarantee, prefetch=20) as consumer:
            signal.signal(signal.SIGTERM, lambda *_: consumer.stop())
            while not consumer.closed and os.getppid() == parent:
                try:
                    deliveries = consumer.receive(max_messages=10, timeout=0.2)
                except brokerkit.Closed:
                    break
                for delivery in deliveries:
                    time.sleep(CALL_SECONDS)
                    handle(books, delivery)
                    delivery.ack()


def _each_time(books: sqlite3.Connection, delivery: brokerkit.Delivery) -> None:
    charge(books, delivery.id)


def _once(books: sqlite3.Connection, delivery: brokerkit.Delivery) -> None:
    """Both rows or none: the id that was seen, and the charge."""
    books.execute("begin immediate")
    for fresh in INBOX.fresh(books, [delivery]):
        charge(books, fresh.id)
    books.execute("commit")


if __name__ == "__main__":
    main(*sys.argv[1:])
