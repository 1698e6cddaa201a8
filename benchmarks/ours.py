"""The work through brokerkit's public interface, as a user would write it."""

from __future__ import annotations

import time
from collections import deque

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
    """Messages a second until every one is confirmed, one to warm up not counted. `batch`: in lists of so many."""
    body = b"x" * size
    confirmed = 0
    receipts: deque[brokerkit.Receipt] = deque()
    with brokerkit.connect(url) as broker, broker.producer(topic, guarantee) as producer:
        warm = producer.send(body)
        producer.flush(60)
        began = time.perf_counter()
        if batch:
            for _ in range(0, count, batch):
                receipts += producer.send_many([brokerkit.Message(body, headers=headers) for _ in range(batch)])
                confirmed += _ended(receipts)
        else:
            send_one = producer.send
            for sent in range(count):
                receipts.append(send_one(body, headers=headers))
                if not sent % 100:
                    confirmed += _ended(receipts)
        left = producer.flush(300)
        confirmed += _ended(receipts)
        seconds = time.perf_counter() - began
        if guarantee == "at_most_once":
            if producer.dropped:
                raise RuntimeError(f"{producer.dropped} were dropped")
        elif left or warm.state != "confirmed" or confirmed != count:
            raise RuntimeError(f"{confirmed} of {count} were confirmed")
    return count / seconds


def _ended(receipts: deque[brokerkit.Receipt]) -> int:
    """Takes those off that have ended, in order, as somebody does who looks at every receipt and keeps none."""
    confirmed = 0
    while receipts and receipts[0].state != "pending":
        confirmed += receipts.popleft().state == "confirmed"
    return confirmed


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
