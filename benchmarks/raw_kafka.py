"""Raw confluent-kafka at its best practice: what brokerkit's Kafka figures are held against.

One thread. Sends are idempotent, acks=all, with a callback for each confirm and a poll now and then; receives take
1,000 at a time and commit asynchronously each 100 ms. `same_wire` writes and reads the message that brokerkit's plugin
writes: a fresh id and one header on each, read back as text; otherwise a bare body.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

BATCH = 1000
COMMIT_EACH = 0.1
PATIENCE = 60.0


def send(servers: str, topic: str, count: int, size: int, *, same_wire: bool = True) -> float:
    """Confirmed messages a second into `topic`, which exists."""
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 5,
            "partitioner": "murmur2_random",
        }
    )
    body = b"x" * size
    prefix = os.urandom(12).hex()
    number = itertools.count().__next__
    confirmed = failed = 0

    def done(error: KafkaError | None, message: Message) -> None:
        nonlocal confirmed, failed
        if error is None:
            confirmed += 1
        else:
            failed += 1

    # One to warm up, as on every side: librdkafka takes half a second to acquire its producer id.
    producer.produce(topic, body, on_delivery=done)
    producer.flush(PATIENCE)
    confirmed -= 1
    began = time.perf_counter()
    for sent in range(count):
        headers: Any = None
        if same_wire:
            headers = [("brokerkit-id", f"{prefix}-{number():x}"), ("kind", "bench")]
        while True:
            try:
                producer.produce(topic, body, headers=headers, on_delivery=done)
                break
            except BufferError:
                producer.poll(0.01)
        if not sent % 100:
            producer.poll(0)
    producer.flush(PATIENCE)
    seconds = time.perf_counter() - began
    if confirmed != count:
        raise RuntimeError(f"{confirmed} of {count} were confirmed, {failed} failed")
    return count / seconds


def receive(servers: str, topic: str, count: int, *, same_wire: bool = True) -> float:
    """Messages received and committed a second from the beginning of `topic`, which holds at least `count`."""
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"raw-{os.urandom(6).hex()}",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "fetch.queue.backoff.ms": 10,
        }
    )
    consumer.subscribe([topic])
    places: dict[int, int] = {}
    done = 0
    began = committed_at = 0.0
    give_up = time.monotonic() + PATIENCE
    while done < count:
        batch = consumer.consume(BATCH, 0.1)
        if batch and not began:
            began = committed_at = time.perf_counter()
        for message in batch:
            _check(message)
            if same_wire:
                _read(message)
            places[message.partition()] = message.offset() + 1  # type: ignore[index, operator]
        done += len(batch)
        if batch and time.perf_counter() - committed_at >= COMMIT_EACH:
            consumer.commit(offsets=_offsets(topic, places), asynchronous=True)
            committed_at = time.perf_counter()
        if time.monotonic() > give_up:
            raise RuntimeError(f"only {done} of {count} came")
    consumer.commit(offsets=_offsets(topic, places), asynchronous=False)
    seconds = time.perf_counter() - began
    consumer.close()
    return done / seconds


def _check(message: Message) -> None:
    error = message.error()
    if error is not None:
        raise KafkaException(error)


def _read(message: Message) -> tuple[str | None, dict[str, str]]:
    """The id and the headers as text, as a user of brokerkit reads them."""
    headers = {name: value.decode() for name, value in message.headers() or ()}  # type: ignore[union-attr]
    return headers.pop("brokerkit-id", None), headers


def _offsets(topic: str, places: dict[int, int]) -> list[TopicPartition]:
    return [TopicPartition(topic, partition, offset) for partition, offset in places.items()]
