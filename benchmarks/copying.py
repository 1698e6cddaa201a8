"""Consume, transform, produce: every message of one topic sent on to another, under its id.

Three ways to the same end, each at its best practice and each with commits as far apart: a transaction of brokerkit's,
a consumer and a producer of brokerkit's at least once, and the client library's own transactional loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import Consumer, KafkaException, Producer

import brokerkit
from benchmarks.ours import SUBSCRIPTION

BATCH = 500
MANY = 10_000_000
PATIENCE = 60.0


def exactly_once(url: str, topic: str, count: int, seconds: float) -> float:
    """Messages a second, in transactions of so many seconds."""
    with brokerkit.connect(url) as broker, target(broker, topic) as out:
        with broker.transactions(
            topic,
            subscription=SUBSCRIPTION,
            instance="bench",
            max_messages=MANY,
            max_bytes=1 << 40,
            max_seconds=seconds,
        ) as transactions:
            done = 0
            began = 0.0
            while done < count:
                transaction = transactions.receive(PATIENCE)
                began = began or time.perf_counter()
                if transaction is None:
                    raise RuntimeError(f"only {done} of {count} came")
                with transaction:
                    for delivery in transaction.stream():
                        transaction.send(out, delivery.body or b"", id=delivery.id)
                if transaction.state != "committed":
                    raise RuntimeError(f"a transaction was {transaction.state}")
                done += transaction.taken
            return done / (time.perf_counter() - began)


def at_least_once(url: str, topic: str, count: int, seconds: float) -> float:
    """The same with acks behind confirms, both waited for so often."""
    with brokerkit.connect(url) as broker, target(broker, topic) as out:
        with (
            broker.consumer(topic, subscription=SUBSCRIPTION, prefetch=MANY, prefetch_bytes=1 << 40) as consumer,
            broker.producer(out, max_in_flight=MANY, max_in_flight_bytes=1 << 40) as producer,
        ):
            done = 0
            began = 0.0
            while done < count:
                held: list[brokerkit.Delivery] = []
                until = 0.0
                while done < count and (not until or time.monotonic() < until):
                    batch = consumer.receive(BATCH, PATIENCE)
                    began = began or time.perf_counter()
                    until = until or time.monotonic() + seconds
                    if not batch:
                        raise RuntimeError(f"only {done} of {count} came")
                    for delivery in batch:
                        producer.send(delivery.body or b"", id=delivery.id)
                    held += batch
                    done += len(batch)
                if producer.flush(PATIENCE):
                    raise RuntimeError("sends without an end")
                for delivery in held:
                    delivery.ack()
            if consumer.flush(PATIENCE):
                raise RuntimeError("acks without an end")
            return done / (time.perf_counter() - began)


def raw(url: str, servers: str, topic: str, count: int, seconds: float) -> float:
    """The client library's own loop, without regard to rebalances and errors, which do not occur here."""
    with brokerkit.connect(url) as broker, target(broker, topic) as out:
        consumer = Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": f"raw-{os.urandom(6).hex()}",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.queue.backoff.ms": 10,  # of 1000, for which it stood empty
            }
        )
        consumer.subscribe([topic])
        producer = Producer({"bootstrap.servers": servers, "transactional.id": f"raw-{topic}", "linger.ms": 5})
        producer.init_transactions(PATIENCE)
        try:
            return _raw_loop(consumer, producer, out, count, seconds)
        finally:
            consumer.close()


def _raw_loop(consumer: Consumer, producer: Producer, out: str, count: int, seconds: float) -> float:
    done = 0
    began = 0.0
    give_up = time.monotonic() + 2 * PATIENCE
    while done < count:
        producer.begin_transaction()
        until = 0.0
        while done < count and (not until or time.monotonic() < until):
            if time.monotonic() > give_up:
                raise RuntimeError(f"only {done} of {count} came")
            for message in consumer.consume(BATCH, 0.02):
                if (error := message.error()) is not None:
                    raise KafkaException(error)
                began = began or time.perf_counter()
                until = until or time.monotonic() + seconds
                headers = message.headers() or [("brokerkit-id", b"none")]  # the first one may be a warm-up's
                while True:
                    try:
                        producer.produce(out, message.value(), headers=[headers[0]])
                        break
                    except BufferError:
                        producer.poll(0.01)
                done += 1
            producer.poll(0)
        places = consumer.position(consumer.assignment())
        producer.send_offsets_to_transaction(places, consumer.consumer_group_metadata())
        producer.commit_transaction()
    return done / (time.perf_counter() - began)


@contextmanager
def target(broker: brokerkit.Broker, topic: str) -> Iterator[str]:
    """The topic to send to, removed afterwards."""
    out = f"{topic}-out"
    broker.delete(out)
    broker.declare(out)
    try:
        yield out
    finally:
        broker.delete(out)
