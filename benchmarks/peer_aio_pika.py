"""aio-pika on RabbitMQ: confirmed persistent sends, 1,000 at once; prefetch 500, an ack for each message."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import aio_pika

AT_ONCE = 1000


def send(url: str, queue: str, count: int, size: int) -> float:
    async def main() -> float:
        connection = await aio_pika.connect(url)
        async with connection:
            channel = await connection.channel(publisher_confirms=True)
            exchange = channel.default_exchange
            body = b"x" * size
            began = time.perf_counter()
            for first in range(0, count, AT_ONCE):
                await asyncio.gather(
                    *(
                        exchange.publish(
                            aio_pika.Message(body, delivery_mode=2, message_id=str(uuid.uuid4())), routing_key=queue
                        )
                        for _ in range(first, min(first + AT_ONCE, count))
                    )
                )
            return count / (time.perf_counter() - began)

    return asyncio.run(main())


def receive(url: str, queue: str, count: int) -> float:
    async def main() -> float:
        connection = await aio_pika.connect(url)
        async with connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=500)
            found = await channel.get_queue(queue, ensure=False)
            ended = asyncio.Event()
            done = 0

            async def on_message(message: Any) -> None:
                nonlocal done
                await message.ack()
                done += 1
                if done == count:
                    ended.set()

            began = time.perf_counter()
            await found.consume(on_message)
            await asyncio.wait_for(ended.wait(), 120)
            return count / (time.perf_counter() - began)

    return asyncio.run(main())
