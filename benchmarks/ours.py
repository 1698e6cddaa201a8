"""The work through brokerkit's public interface, as a user would write it."""

from __future__ import annotations

import time

import brokerkit

SUBSCRIPTION = "bench"


def send(
    url: str,
    topic: str,
    count: int,
    size: int,
    *,
    guarantee: str = "at_least_once",
    batch: int = 0,
    headers: dict[str, str] | None = None,
) -> float:
    """Messages a second until every one is confirmed. `batch`: handed over in lists of so many."""
    body = b"x" * size
    with brokerkit.connect(url) as broker:
        with broker.producer(topic, guarantee) as producer:
            began = time.perf_counter()
            receipts: list[brokerkit.Receipt] = []
            if batch:
                for _ in range(0, count, batch):
                    receipts += producer.send_many([brokerkit.Message(body, headers=headers) for _ in range(batch)])
            else:
                send_one = producer.send
                receipts = [send_one(body, headers=headers) for _ in range(count)]
            left = producer.flush(300)
            seconds = time.perf_counter() - began
        if guarantee != "at_most_once":
            confirmed = sum(receipt.state == "confirmed" for receipt in receipts)
            if left or confirmed != len(receipts):
                raise RuntimeError(f"{confirmed} of {len(receipts)} were confirmed")
        elif producer.dropped:
            raise RuntimeError(f"{producer.dropped} were dropped")
    return len(receipts) / seconds


def receive(
    url: str, topic: str, count: int, *, guarantee: str = "at_least_once", batch: int = 100, prefetch: int = 500
) -> float:
    """Messages a second, each read (id and headers) and acked, until every ack has its end."""
    with brokerkit.connect(url) as broker:
        with broker.consumer(topic, subscription=SUBSCRIPTION, guarantee=guarantee, prefetch=prefetch) as consumer:
            done = 0
            began = 0.0
            while done < count:
                deliveries = consumer.receive(batch, timeout=60)
                began = began or time.perf_counter()
                if not deliveries:
                    raise RuntimeError(f"only {done} of {count} came")
                for delivery in deliveries:
                    if not delivery.id or delivery.headers is None:
                        raise RuntimeError("a message without id")
                    delivery.ack()
                done += len(deliveries)
            left = consumer.flush(60)
            seconds = time.perf_counter() - began
        if left:
            raise RuntimeError(f"{left} acks had no end")
    return done / seconds
