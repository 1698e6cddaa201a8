"""A worker that makes one of the common mistakes, or does not, as a process of its own: it is there to be killed.

    python -m brokerkit_conformance.demo.clerk WAY QUEUE_URL BOOKS_FILE MOMENT

At its first MOMENT it says so on stdout and stands still until it reads a line. It ends when there is no work left, and
with its parent. The moments: `received` (payments in hand, none charged), `marked` (they are marked as seen, and not
charged), `charged` (the charge is committed, the broker does not know), `sent` (handed over to the broker, which has
not confirmed).
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import brokerkit
from brokerkit.once import Inbox, Relay
from brokerkit.producer import Producer
from brokerkit_conformance.demo.books import charge, open_books, store_url

BATCH = 10


class Moments:
    def __init__(self, stand_at: str) -> None:
        self._stand_at = stand_at

    def __call__(self, moment: str) -> None:
        if moment == self._stand_at:
            self._stand_at = ""
            print(moment, flush=True)
            if not sys.stdin.readline():  # the parent is gone
                raise SystemExit(1)


def batches(broker: brokerkit.Broker, consumer: brokerkit.Consumer) -> Iterator[Sequence[brokerkit.Delivery]]:
    """Until every payment is settled, by whomever."""
    while broker.depth("payments", "ledger"):
        if deliveries := consumer.receive(BATCH, timeout=0.1):
            yield deliveries


def ack(deliveries: Iterable[brokerkit.Delivery]) -> None:
    for delivery in deliveries:
        with suppress(brokerkit.SettleError):  # its lease is over: another worker has it
            delivery.ack()


def trusting_the_broker(broker: brokerkit.Broker, books: sqlite3.Connection, at: Moments) -> None:
    with broker.transactions("payments", subscription="ledger", max_messages=BATCH) as transactions:
        while broker.depth("payments", "ledger"):
            if (transaction := transactions.receive(timeout=0.1)) is not None:
                with transaction as tx:
                    for delivery in tx.deliveries:
                        charge(books, delivery.id)
                        tx.send("receipts", b"charged")
                    at("charged")


def acking_on_receive(broker: brokerkit.Broker, books: sqlite3.Connection, at: Moments) -> None:
    with broker.consumer("payments", subscription="ledger") as consumer:
        for deliveries in batches(broker, consumer):
            ack(deliveries)
            consumer.flush(timeout=10)
            at("received")
            for delivery in deliveries:
                charge(books, delivery.id)


def charging_whatever_comes(broker: brokerkit.Broker, books: sqlite3.Connection, at: Moments) -> None:
    with broker.consumer("payments", subscription="ledger") as consumer:
        for deliveries in batches(broker, consumer):
            at("received")
            for delivery in deliveries:
                charge(books, delivery.id)
            ack(deliveries)


def dedup_in_memory(broker: brokerkit.Broker, books: sqlite3.Connection, at: Moments) -> None:
    seen: set[str] = set()
    with broker.consumer("payments", subscription="ledger") as consumer:
        for deliveries in batches(broker, consumer):
            for delivery in deliveries:
                if delivery.id not in seen:
                    charge(books, delivery.id)
                    seen.add(delivery.id)
            at("charged")
            ack(deliveries)


def mark_in_another_transaction(broker: brokerkit.Broker, books: sqlite3.Connection, at: Moments) -> None:
    inbox = Inbox("ledger")
    with broker.consumer("payments", subscription="ledger") as consumer:
        for deliveries in batches(broker, consumer):
            books.execute("begin immediate")
            fresh = inbox.fresh(books, deliveries)
            books.execute("commit")
            at("marked")
            for delivery in fresh:
                charge(books, delivery.id)
            ack(deliveries)


def mark_and_charge_together(broker: brokerkit.Broker, books: sqlite3.Connection, at: Moments) -> None:
    inbox = Inbox("ledger")
    with broker.consumer("payments", subscription="ledger") as consumer:
        for deliveries in batches(broker, consumer):
            at("received")
            books.execute("begin immediate")
            fresh = inbox.fresh(books, deliveries)
            at("marked")
            for delivery in fresh:
                charge(books, delivery.id)
            books.execute("commit")
            at("charged")
            ack(deliveries)


def deleting_before_the_confirm(broker: brokerkit.Broker, books: sqlite3.Connection, at: Moments) -> None:
    first = f"select id, message_id, body from brokerkit_outbox order by id limit {BATCH}"
    with broker.producer("payments") as producer:
        while rows := books.execute(first).fetchall():
            for id, message_id, body in rows:
                producer.send(body, id=message_id)
                books.execute("delete from brokerkit_outbox where id = ?", (id,))
            at("sent")


def deleting_after_the_confirm(broker: brokerkit.Broker, books: sqlite3.Connection, at: Moments) -> None:
    [(_, _, file)] = books.execute("pragma database_list")
    Relay(store_url(file), _Told(broker, at), batch=BATCH).run(until_empty=True)


class _Told:
    """The broker as the relay sees it, with a moment after each hand-over."""

    def __init__(self, broker: brokerkit.Broker, at: Moments) -> None:
        self._broker = broker
        self._at = at
        self.capabilities = broker.capabilities

    def producer(self, topic: str, **options: Any) -> Producer:
        producer = self._broker.producer(topic, **options)
        hand_over = producer.send_many

        def send_many(messages: Iterable[brokerkit.Message | bytes], **more: Any) -> list[brokerkit.Receipt]:
            receipts = hand_over(messages, **more)
            self._at("sent")
            return receipts

        producer.send_many = send_many  # type: ignore[method-assign]
        return producer


WAYS: dict[str, Callable[[brokerkit.Broker, sqlite3.Connection, Moments], None]] = {
    way.__name__: way
    for way in (
        trusting_the_broker,
        acking_on_receive,
        charging_whatever_comes,
        dedup_in_memory,
        mark_in_another_transaction,
        mark_and_charge_together,
        deleting_before_the_confirm,
        deleting_after_the_confirm,
    )
}


def main(way: str, url: str, books: str, moment: str) -> None:
    with brokerkit.connect(url) as broker:
        WAYS[way](broker, open_books(books), Moments(moment))


if __name__ == "__main__":
    main(*sys.argv[1:])
