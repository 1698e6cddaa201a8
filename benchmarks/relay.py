"""The relay beside the loop that one would write by hand: select a batch, send it pipelined, delete it once confirmed.

`python -m benchmarks.relay [--only BROKER] [--rounds N] [--count N] [--keys N] [--json FILE]`. Both take 1 KiB messages
out of the same table of one PostgreSQL, beside a real RabbitMQ and a real Kafka, 1,000 rows at a time, and write the
same wire message. The hand-written loop is one thread: it has one batch in flight, knows one topic, no second relay,
no refusal and no outage; its deletes wait for the disk no more than the relay's do.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from typing import Any

import pika
import psycopg
from confluent_kafka import KafkaError, Message, Producer
from pika import spec

import brokerkit
from benchmarks import raw_rabbitmq
from benchmarks.brokers import started, store
from benchmarks.measure import Call, Side, Work, ended, measure
from benchmarks.works import SIZE, Broker, queue_of
from brokerkit.message import outgoing
from brokerkit.once import Outbox, Relay

BATCH = 1000
PATIENCE = 120.0
_SELECT = """\
select id, message_id, key, published_at, body from brokerkit_outbox where topic = %s order by id limit %s"""
_DELETE = "delete from brokerkit_outbox where id = any(%s)"


def fill(store: str, topic: str, count: int, keys: int) -> None:
    """Writes `count` messages for `topic`, of so many keys (0: of none)."""
    outbox, body = Outbox(store), b"x" * SIZE
    with psycopg.connect(store) as db:
        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            messages = [outgoing(body, key=f"key-{number % keys}" if keys else None) for number in numbers]
            outbox.send_many(db, topic, messages)
    with psycopg.connect(store, autocommit=True) as db:
        db.execute("vacuum analyze brokerkit_outbox")


def ours(store: str, url: str, count: int) -> float:
    """Messages a second, from the first look to the last delete."""
    with brokerkit.connect(url) as broker:
        relay = Relay(store, broker, batch=BATCH)
        began = time.perf_counter()
        with relay:
            while relay.sent < count and time.perf_counter() - began < PATIENCE:
                time.sleep(0.002)
            seconds = time.perf_counter() - began
    if relay.sent != count:
        raise RuntimeError(f"{relay.sent} of {count} were sent")
    return count / seconds


def by_hand_kafka(store: str, servers: str, topic: str, count: int) -> float:
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 5,
            "partitioner": "murmur2_random",
        }
    )
    began = time.perf_counter()
    done = 0
    with _connected(store) as db:
        while rows := _batch(db, topic):
            confirmed: list[int] = []

            for id, message_id, key, published_at, body in rows:
                producer.produce(
                    topic,
                    body,
                    key,
                    timestamp=published_at,
                    headers=[("brokerkit-id", message_id)],
                    on_delivery=partial(_confirmed, confirmed, id),
                )
            producer.flush(PATIENCE)
            db.execute(_DELETE, (confirmed,), prepare=True)
            done += len(confirmed)
    seconds = time.perf_counter() - began
    if done != count:
        raise RuntimeError(f"{done} of {count} were sent")
    return count / seconds


def _confirmed(ids: list[int], id: int, error: KafkaError | None, _: Message) -> None:
    if error is None:
        ids.append(id)


def by_hand_rabbitmq(store: str, amqp: str, queue: str, topic: str, count: int) -> float:
    with _connected(store) as db:
        return _ByHand(db, queue, topic, count).run(amqp)


class _ByHand(raw_rabbitmq._Loop):
    def __init__(self, db: psycopg.Connection[Any], queue: str, topic: str, count: int) -> None:
        super().__init__(count)
        self.db = db
        self.queue = queue
        self.topic = topic
        self.published = self.confirmed = self.deleted = 0
        self.ids: list[int] = []

    def start(self) -> None:
        self.channel.confirm_delivery(self._on_confirm, callback=self._on_ready)
        self.channel.add_on_return_callback(lambda *_: None)

    def _on_ready(self, _: Any) -> None:
        self.begun = time.perf_counter()
        self._next()

    def _next(self) -> None:
        rows = _batch(self.db, self.topic)
        self.ids = [row[0] for row in rows]
        for _, message_id, key, published_at, body in rows:
            headers = {"brokerkit-published-at": published_at}
            if key is not None:
                headers["brokerkit-key"] = key
            properties = pika.BasicProperties(
                message_id=message_id, timestamp=published_at // 1000, delivery_mode=2, headers=headers
            )
            self.channel.basic_publish("", self.queue, body, properties, mandatory=True)
        self.published += len(rows)
        if not rows:
            if self.deleted != self.count:
                raise RuntimeError(f"{self.deleted} of {self.count} were sent")
            self.done()

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        if not isinstance(method, spec.Basic.Ack):
            raise RuntimeError("the broker nacked a message")
        self.confirmed += method.delivery_tag - self.confirmed if method.multiple else 1
        if self.confirmed == self.published:
            self.db.execute(_DELETE, (self.ids,), prepare=True)
            self.deleted += len(self.ids)
            self._next()


def _connected(store: str) -> psycopg.Connection[Any]:
    db = psycopg.connect(store, autocommit=True)
    db.execute("set synchronous_commit = off")
    return db


def _batch(db: psycopg.Connection[Any], topic: str) -> list[Any]:
    with db.cursor(binary=True) as cursor:
        return cursor.execute(_SELECT, (topic, BATCH), prepare=True).fetchall()


def work(broker: Broker, store: str, count: int, keys: int) -> Work:
    def by_hand(topic: str) -> Call:
        if broker.name == "kafka":
            return Call("relay", "by_hand_kafka", (store, broker.servers, topic, count))
        return Call("relay", "by_hand_rabbitmq", (store, broker.amqp, queue_of(topic), topic, count))

    def filling(topic: str) -> Call:
        return Call("relay", "fill", (store, topic, count, keys))

    return Work(
        f"{broker.name}: relay an outbox" + (f" of {keys} keys" if keys else ""),
        broker.url,
        [
            Side("brokerkit", lambda topic: Call("relay", "ours", (store, broker.url, count)), filling),
            Side("raw", by_hand, filling),
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay", description=__doc__)
    parser.add_argument("--only", choices=("rabbitmq", "kafka"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=200_000, help="messages in the outbox")
    parser.add_argument("--keys", type=int, default=1000, help="0: messages have none")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    asked = parser.parse_args()
    rows = []
    with store() as url:
        for name in (asked.only,) if asked.only else ("rabbitmq", "kafka"):
            with started(name) as (broker, _):
                row = measure(work(broker, url, asked.count, asked.keys), asked.rounds).as_dict()
            rows.append(row)
            ratio = row["ratio_to_raw"]
            print(f"{row['work']}: {row['rounds']} ratio {ratio and round(ratio, 2)} {row['failed'] or ''}")
    return ended(rows, asked.json)


if __name__ == "__main__":
    sys.exit(main())
