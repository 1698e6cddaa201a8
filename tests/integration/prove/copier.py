"""A worker of the soak: copies a topic to another in capitals, in transactions or at least once, until told to stop.

`python copier.py URL TOPIC OUT INSTANCE exactly_once|at_least_once`. One line for every hundred messages.
"""

from __future__ import annotations

import signal
import sys
import threading
import time

import brokerkit

SUBSCRIPTION = "copy"
SECONDS = 0.5
PATIENCE = 20.0

stopping = threading.Event()


def transformed(body: bytes | None) -> bytes:
    return (body or b"").upper()


def exactly_once(broker: brokerkit.Broker, topic: str, out: str, instance: str) -> None:
    with broker.transactions(
        topic,
        subscription=SUBSCRIPTION,
        instance=instance,
        max_messages=20_000,
        max_seconds=SECONDS,
        timeout=0.5,
    ) as transactions:
        while not stopping.is_set():
            transaction = transactions.receive()
            if transaction is None:
                continue
            with transaction:
                for delivery in transaction.deliveries:
                    transaction.send(out, transformed(delivery.body), id=delivery.id)
            print(transaction.state, len(transaction.deliveries), flush=True)


def at_least_once(broker: brokerkit.Broker, topic: str, out: str, instance: str) -> None:
    """The same program with the same bounds: acks behind confirms, as often as the other commits."""
    with (
        broker.consumer(topic, subscription=SUBSCRIPTION, prefetch=20_000) as consumer,
        broker.producer(out) as producer,
    ):
        while not stopping.is_set():
            held: list[brokerkit.Delivery] = []
            until = time.monotonic() + SECONDS
            while (left := until - time.monotonic()) > 0 and len(held) < 20_000:
                batch = consumer.receive(500, timeout=left)
                for delivery in batch:
                    producer.send(transformed(delivery.body), id=delivery.id)
                held += batch
            while producer.flush(PATIENCE):
                if stopping.is_set():
                    return
            for delivery in held:
                try:
                    delivery.ack()
                except brokerkit.LeaseLost:
                    continue
            print("acked", len(held), flush=True)


def main(url: str, topic: str, out: str, instance: str, how: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    with brokerkit.connect(url) as broker:
        print("ready", 0, flush=True)
        (exactly_once if how == "exactly_once" else at_least_once)(broker, topic, out, instance)


if __name__ == "__main__":
    main(*sys.argv[1:])
