"""Latency at a fixed rate, from the *scheduled* time of each send, so that a stall delays nobody's clock."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import brokerkit
from benchmarks.ours import SUBSCRIPTION as OURS

_STAMP = struct.Struct(">Q")
_WARM_UP = 0.2
"""The share of messages that are not counted."""

Latencies = dict[str, float]


def ours(url: str, topic: str, rate: int, seconds: float, size: int) -> Latencies:
    with brokerkit.connect(url) as broker:
        with broker.consumer(topic, subscription=OURS) as consumer, broker.producer(topic) as producer:
            found: list[int] = []
            total = int(rate * seconds)

            def receive() -> None:
                give_up = time.monotonic() + seconds + 60
                while len(found) < total and time.monotonic() < give_up:
                    for delivery in consumer.receive(100, timeout=1.0):
                        found.append(_age(delivery.body or b""))
                        delivery.ack()

            return _drive(producer.send, receive, found, rate, total, size)


def raw_rabbitmq(url: str, queue: str, rate: int, seconds: float, size: int) -> Latencies:
    """A confirmed publish at a time, which is the quickest at this rate, and a consumer that acks each."""
    import pika

    parameters = pika.URLParameters(url)
    consuming = pika.BlockingConnection(parameters)
    publishing = pika.BlockingConnection(parameters)
    channel = publishing.channel()
    channel.confirm_delivery()
    properties = pika.BasicProperties(delivery_mode=2)
    found: list[int] = []
    total = int(rate * seconds)

    def receive() -> None:
        reader = consuming.channel()
        reader.basic_qos(prefetch_count=500)
        for method, _, body in reader.consume(queue, inactivity_timeout=60):
            if method is None:
                return
            found.append(_age(body))
            reader.basic_ack(method.delivery_tag)
            if len(found) == total:
                return

    try:
        return _drive(
            lambda body: channel.basic_publish("", queue, body, properties), receive, found, rate, total, size
        )
    finally:
        publishing.close()
        consuming.close()


def raw_kafka(servers: str, topic: str, rate: int, seconds: float, size: int) -> Latencies:
    from confluent_kafka import Consumer, Producer

    producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True, "acks": "all", "linger.ms": 5})
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"latency-{time.time_ns()}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    found: list[int] = []
    total = int(rate * seconds)

    def receive() -> None:
        give_up = time.monotonic() + seconds + 60
        while len(found) < total and time.monotonic() < give_up:
            message = consumer.poll(1.0)
            if message is not None and message.error() is None:
                found.append(_age(message.value()))
                if len(found) % 100 == 0:
                    consumer.commit(message, asynchronous=True)

    def send(body: bytes) -> None:
        producer.produce(topic, body)
        producer.poll(0)

    try:
        return _drive(send, receive, found, rate, total, size)
    finally:
        producer.flush(10)
        consumer.close()


def _drive(
    send: Callable[[bytes], Any],
    receive: Callable[[], None],
    found: list[int],
    rate: int,
    total: int,
    size: int,
) -> Latencies:
    """Sends on schedule from this thread while another receives; percentiles in ms."""
    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    padding = b"x" * (size - _STAMP.size)
    begin = time.monotonic_ns() + 50_000_000
    for number in range(total):
        due = begin + number * 1_000_000_000 // rate
        wait = due - time.monotonic_ns()
        if wait > 0:
            time.sleep(wait / 1e9)
        send(_STAMP.pack(due) + padding)
    receiver.join(90)
    if len(found) < total:
        raise RuntimeError(f"only {len(found)} of {total} came")
    counted = sorted(found[int(total * _WARM_UP) :])
    return {name: round(counted[int(len(counted) * share)] / 1e6, 3) for name, share in _SHARES.items()}


_SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


def _age(body: bytes) -> int:
    return time.monotonic_ns() - int(_STAMP.unpack_from(body)[0])
