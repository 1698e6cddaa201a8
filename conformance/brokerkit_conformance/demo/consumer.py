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

import brokerkit

CALL_SECONDS = 0.001
"""How long the card company takes to answer."""


def main(url: str, ledger: str, guarantee: str, dedup: str) -> None:
    parent = os.getppid()
    charge = _charge_once if dedup == "dedup" else _charge
    database = sqlite3.connect(ledger, timeout=30.0, isolation_level=None)
    database.execute("pragma synchronous = full")
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
                    charge(database, delivery.id)
                    delivery.ack()


def _charge(database: sqlite3.Connection, id: str) -> None:
    database.execute("insert into charges (payment, dollars, process) values (?, 50, ?)", (id, os.getpid()))


def _charge_once(database: sqlite3.Connection, id: str) -> None:
    """Both rows or none: the id that was seen, and the charge."""
    database.execute("begin immediate")
    if database.execute("insert or ignore into seen (payment) values (?)", (id,)).rowcount:
        _charge(database, id)
    database.execute("commit")


if __name__ == "__main__":
    main(*sys.argv[1:])
