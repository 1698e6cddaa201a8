"""Payments are sent, and charged once each, on whatever broker the URL names.

    python examples/payments.py URL [send | charge | both] [--count N]

`send` sends N payments of $50. `charge` charges what has been sent, each payment once even when it is handed out twice,
and ends when nothing has come for a while. `both` does one after the other. Nothing in here knows a broker.
"""

from __future__ import annotations

import argparse
import json
import sqlite3

import brokerkit

TOPIC, SUBSCRIPTION = "payments", "ledger"


def send(broker: brokerkit.Broker, count: int) -> None:
    """Returns when the broker has stored every payment."""
    with broker.producer(TOPIC) as producer:
        receipts = [
            producer.send(
                json.dumps({"charge": 50}).encode(),
                id=f"payment-{number}",
                key=f"customer-{number % 7}",
                headers={"currency": "USD"},
                content_type="application/json",
            )
            for number in range(count)
        ]
        for receipt in receipts:
            receipt.result(timeout=30)
    print(f"{count} payments sent")


def charge(broker: brokerkit.Broker, ledger: sqlite3.Connection, patience: float) -> None:
    """Charges until nothing has come for `patience` seconds."""
    with broker.consumer(TOPIC, subscription=SUBSCRIPTION, guarantee="at_least_once") as consumer:
        while deliveries := consumer.receive(max_messages=100, timeout=patience):
            for delivery in deliveries:
                try:
                    dollars = json.loads(delivery.body or b"")["charge"]
                except (ValueError, KeyError, TypeError):
                    delivery.reject("not a payment")
                    continue
                with ledger:  # the id and the charge in one transaction
                    ledger.execute(
                        "insert or ignore into charges values (?, ?, ?)", (delivery.id, delivery.key, dollars)
                    )
                delivery.ack()
        consumer.flush(timeout=30)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("url")
    arguments.add_argument("what", nargs="?", choices=["send", "charge", "both"], default="both")
    arguments.add_argument("--count", type=int, default=100)
    arguments.add_argument("--ledger", default=":memory:", help="the file to keep charges in")
    arguments.add_argument("--patience", type=float, default=3.0, help="seconds without a payment before it ends")
    asked = arguments.parse_args()
    ledger = sqlite3.connect(asked.ledger)
    ledger.execute("create table if not exists charges (payment text primary key, customer text, dollars integer)")
    with brokerkit.connect(asked.url) as broker:
        broker.declare(TOPIC, subscriptions=[SUBSCRIPTION], attempts=5)
        if asked.what in ("send", "both"):
            send(broker, asked.count)
        if asked.what in ("charge", "both"):
            charge(broker, ledger, asked.patience)
    count, dollars = ledger.execute("select count(*), coalesce(sum(dollars), 0) from charges").fetchone()
    print(f"{count} payments charged, ${dollars:,}")


if __name__ == "__main__":
    main()
