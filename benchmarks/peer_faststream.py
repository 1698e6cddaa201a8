"""FastStream on RabbitMQ (aio-pika) and Kafka (confluent): sends awaited 1,000 at once, an ack after each handler."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from faststream import AckPolicy

AT_ONCE = 1000


def rabbit_send(url: str, queue: str, count: int, size: int) -> float:
    from faststream.rabbit import RabbitBroker

    return asyncio.run(_send(RabbitBroker(url, logger=None), {"queue": queue, "persist": True}, count, size))


def rabbit_receive(url: str, queue: str, count: int) -> float:
    from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

    broker = RabbitBroker(url, logger=None, default_channel=Channel(prefetch_count=500))
    return asyncio.run(
        _receive(broker, broker.subscriber(RabbitQueue(queue, declare=False), ack_policy=AckPolicy.ACK), count)
    )


def kafka_send(servers: str, topic: str, count: int, size: int) -> float:
    from faststream.confluent import KafkaBroker

    broker = KafkaBroker(servers, logger=None, enable_idempotence=True, acks="all")
    return asyncio.run(_send(broker, {"topic": topic}, count, size))


def kafka_receive(servers: str, topic: str, count: int) -> float:
    from faststream.confluent import KafkaBroker

    broker = KafkaBroker(servers, logger=None)
    subscriber = broker.subscriber(
        topic, group_id=f"faststream-{time.time_ns()}", auto_offset_reset="earliest", ack_policy=AckPolicy.ACK
    )
    return asyncio.run(_receive(broker, subscriber, count))


async def _send(broker: Any, where: dict[str, Any], count: int, size: int) -> float:
    body = b"x" * size
    async with broker:
        await broker.publish(body, **where)
        began = time.perf_counter()
        for first in range(0, count, AT_ONCE):
            await asyncio.gather(*(broker.publish(body, **where) for _ in range(first, min(first + AT_ONCE, count))))
        return count / (time.perf_counter() - began)


async def _receive(broker: Any, subscriber: Callable[..., Any], count: int) -> float:
    """From the first message, so that joining a group does not count; the first is not counted either."""
    logging.disable(logging.WARNING)
    ended = asyncio.Event()
    done = 0
    began = 0.0

    @subscriber
    async def handle(body: bytes) -> None:
        nonlocal done, began
        done += 1
        began = began or time.perf_counter()
        if done >= count:
            ended.set()

    async with broker:
        await broker.start()
        await asyncio.wait_for(ended.wait(), 120)
        return (done - 1) / (time.perf_counter() - began)
