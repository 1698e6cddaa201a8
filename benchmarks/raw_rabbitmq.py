"""Raw pika at its best practice: what brokerkit's RabbitMQ figures are held against.

A SelectConnection on the caller's own thread, no threads beside it. Windows are brokerkit's: sends keep up to 10,000
publishes unconfirmed and call back once per confirmed message; receives prefetch 500, and ack each 50 with `multiple`.
`same_wire` writes and reads the message that brokerkit's plugin writes: an id made for each, timestamp, the
`brokerkit-published-at` header, persistent, mandatory; otherwise a bare persistent body.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import pika
from pika import spec

OUTSTANDING = 10_000
PREFETCH = 500
ACK_EACH = 50


def send(url: str, queue: str, count: int, size: int, *, same_wire: bool = True, exchange: str = "") -> float:
    """Confirmed messages a second into `queue`, which exists (or through `exchange`)."""
    return _Sending(queue, count, b"x" * size, same_wire, exchange).run(url)


def receive(url: str, queue: str, count: int, *, same_wire: bool = True) -> float:
    """Messages received and acked a second from `queue`, which holds at least `count`."""
    return _Receiving(queue, count, same_wire).run(url)


class _Loop:
    """One connection with one channel; `run` returns a rate."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.begun = self.ended = 0.0

    def run(self, url: str) -> float:
        self.connection = pika.SelectConnection(_parameters(url), on_open_callback=self._on_open)
        self.connection.ioloop.call_later(300, self.connection.ioloop.stop)
        self.connection.ioloop.start()
        if not self.ended:
            raise RuntimeError("the raw loop did not end")
        if self.connection.is_open:
            self.connection.add_on_close_callback(lambda *_: self.connection.ioloop.stop())
            self.connection.close()
            self.connection.ioloop.start()
        self.connection.ioloop.close()
        return self.count / (self.ended - self.begun)

    def _on_open(self, connection: Any) -> None:
        connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:
        self.channel = channel
        self.start()

    def start(self) -> None:
        raise AssertionError

    def done(self) -> None:
        self.ended = time.perf_counter()
        self.connection.ioloop.stop()


class _Sending(_Loop):
    def __init__(self, queue: str, count: int, body: bytes, same_wire: bool, exchange: str) -> None:
        super().__init__(count)
        self.queue = queue
        self.exchange = exchange
        self.body = body
        self.same_wire = same_wire
        self.published = self.confirmed = 0
        self.callbacks: dict[int, Callable[[int], None]] = {}
        self.prefix = os.urandom(12).hex() + "-"
        self.next_id = itertools.count().__next__
        self.plain = pika.BasicProperties(delivery_mode=2)

    def start(self) -> None:
        self.channel.confirm_delivery(self._on_confirm, callback=self._on_ready)
        self.channel.add_on_return_callback(lambda *_: None)

    def _on_ready(self, _: Any) -> None:
        self.begun = time.perf_counter()
        self._fill()

    def _fill(self) -> None:
        while self.published < self.count and self.published - self.confirmed < OUTSTANDING:
            self.published += 1
            self.callbacks[self.published] = self._one_confirmed
            properties = self._properties() if self.same_wire else self.plain
            self.channel.basic_publish(self.exchange, self.queue, self.body, properties, mandatory=self.same_wire)

    def _properties(self) -> Any:
        now = time.time_ns() // 1_000_000
        return pika.BasicProperties(
            message_id=f"{self.prefix}{self.next_id():x}",
            timestamp=now // 1000,
            delivery_mode=2,
            headers={"brokerkit-published-at": now},
        )

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        if not isinstance(method, spec.Basic.Ack):
            raise RuntimeError("the broker nacked a message")
        first = self.confirmed + 1 if method.multiple else method.delivery_tag
        for tag in range(first, method.delivery_tag + 1):
            callback = self.callbacks.pop(tag, None)
            if callback is not None:
                callback(tag)
        if self.confirmed == self.count:
            self.done()
        else:
            self._fill()

    def _one_confirmed(self, tag: int) -> None:
        self.confirmed += 1


class _Receiving(_Loop):
    def __init__(self, queue: str, count: int, same_wire: bool) -> None:
        super().__init__(count)
        self.queue = queue
        self.same_wire = same_wire
        self.received = 0
        self.last: Any = None

    def start(self) -> None:
        self.channel.basic_qos(prefetch_count=PREFETCH, callback=self._on_qos)

    def _on_qos(self, _: Any) -> None:
        self.begun = time.perf_counter()
        self.channel.basic_consume(self.queue, self._on_message)

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if self.ended:
            return
        self.received += 1
        if self.same_wire:
            self.last = (body, properties.message_id, properties.headers, properties.content_type, properties.timestamp)
        if self.received == self.count:
            channel.basic_ack(method.delivery_tag, multiple=True)
            channel.basic_qos(prefetch_count=PREFETCH, callback=lambda _: self.done())
        elif self.received % ACK_EACH == 0:
            channel.basic_ack(method.delivery_tag, multiple=True)


def _parameters(url: str) -> pika.ConnectionParameters:
    """Of a brokerkit URL without TLS."""
    parts = urlsplit(url)
    return pika.ConnectionParameters(
        host=parts.hostname or "localhost",
        port=parts.port or 5672,
        virtual_host=unquote(parts.path)[1:] or "/",
        credentials=pika.PlainCredentials(unquote(parts.username or "guest"), unquote(parts.password or "guest")),
        heartbeat=0,
    )
