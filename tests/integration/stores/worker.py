"""A worker that is killed: charges what it receives, and dies where it is told, by SIGKILL.

worker.py BROKER TOPIC STORE WHERE COUNT
"""

from __future__ import annotations

import os
import signal
import sys
import time

import brokerkit


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(url: str, topic: str, store: str, where: str, count: str) -> None:
    mark = "?" if store.startswith("sqlite") else "%s"
    with (
        brokerkit.connect(url) as broker,
        broker.transactions(topic, subscription="ledger", store=store, max_messages=20) as transactions,
    ):
        if where == "before the ack":
            transactions._settle = lambda *_: die()  # type: ignore[method-assign]
        left, quiet = int(count), time.monotonic() + 60.0
        while time.monotonic() < quiet:
            transaction = transactions.receive()
            if transaction is None:
                continue
            quiet = time.monotonic() + 3.0
            with transaction as tx:
                for delivery in tx.deliveries:
                    tx.connection.execute(f"insert into charges values ({mark})", (delivery.id,))
                left -= len(tx.deliveries)
                if left <= 0 and where == "before the commit":
                    die()


if __name__ == "__main__":
    main(*sys.argv[1:])
