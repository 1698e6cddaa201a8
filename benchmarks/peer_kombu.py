"""kombu on RabbitMQ: confirmed persistent sends, prefetch 500, an ack for each message."""

from __future__ import annotations

import time
from typing import Any

from kombu import Connection, Consumer, Queue


def send(url: str, queue: str, count: int, size: int) -> float:
    body = b"x" * size
    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        producer = connection.Producer()
        began = time.perf_counter()
        for _ in range(count):
            producer.publish(
                body,
                routing_key=queue,
                delivery_mode=2,
                content_type="application/octet-stream",
                content_encoding="binary",
            )
        return count / (time.perf_counter() - began)


def receive(url: str, queue: str, count: int) -> float:
    done = 0

    def on_message(message: Any) -> None:
        nonlocal done
        done += 1
        message.ack()

    with Connection(url) as connection:
        channel = connection.channel()
        channel.basic_qos(0, 500, False)
        began = time.perf_counter()
        with Consumer(channel, [Queue(queue, no_declare=True)], on_message=on_message):
            while done < count:
                connection.drain_events(timeout=30)
        return count / (time.perf_counter() - began)
