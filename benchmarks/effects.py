"""What it costs to charge once: the inbox, the checkpoint, and the same effects without either.

`python -m benchmarks.effects [--rounds N] [--scale X] [--dbos] [--json FILE]`. All take 1 KiB messages from the same
Kafka and write a row each into the same PostgreSQL, two hundred messages a transaction or one. Without dedup is a
brokerkit consumer and psycopg: insert, commit, ack. With `--dbos`, DBOS's queue runs a workflow with one transaction
step for each message, from and into the same PostgreSQL.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg

import brokerkit
from benchmarks.brokers import started, store
from benchmarks.measure import PEERS_PYTHON, Call, Side, Work, ended, measure
from benchmarks.ours import SUBSCRIPTION
from benchmarks.works import SIZE, Broker

PATIENCE = 120.0
TOGETHER = 200
_INSERT = "insert into {} (id, dollars) values (%s, 50)"


def without(store: str, url: str, topic: str, count: int, most: int) -> float:
    """Charges a second, from the first delivery to the last ack, of which nobody knows whether they happened before."""
    with brokerkit.connect(url) as broker, psycopg.connect(store) as db:
        table = _table(db, topic)
        with broker.consumer(topic, subscription=SUBSCRIPTION, prefetch=max(500, 2 * most)) as consumer:

            def batches() -> Iterator[int]:
                while True:
                    deliveries = consumer.receive(most, 1.0)
                    if deliveries:
                        _charge(db, table, [delivery.id for delivery in deliveries])
                        db.commit()
                        for delivery in deliveries:
                            delivery.ack()
                    yield len(deliveries)

            return _rate(batches(), count)


def inbox(store: str, url: str, topic: str, count: int, most: int) -> float:
    return _transactions(store, url, topic, count, most, checkpoint=False)


def checkpoint(store: str, url: str, topic: str, count: int, most: int) -> float:
    return _transactions(store, url, topic, count, most, checkpoint=True)


def _transactions(store: str, url: str, topic: str, count: int, most: int, *, checkpoint: bool) -> float:
    with brokerkit.connect(url) as broker, psycopg.connect(store) as db:
        table = _table(db, topic)
        with broker.transactions(
            topic, subscription=SUBSCRIPTION, store=store, checkpoint=checkpoint, max_messages=most
        ) as transactions:

            def batches() -> Iterator[int]:
                while True:
                    transaction = transactions.receive(1.0)
                    if transaction is None:
                        yield 0
                        continue
                    with transaction as tx:
                        _charge(tx.connection, table, [delivery.id for delivery in tx.deliveries])
                    yield len(transaction.deliveries)

            return _rate(batches(), count)


def _table(db: psycopg.Connection[Any], topic: str) -> str:
    name = f"charges_{topic.replace('-', '_')}"
    db.execute(f"drop table if exists {name}")
    db.execute(f"create table {name} (id text not null, dollars integer not null)")
    db.commit()
    return name


def _charge(db: psycopg.Connection[Any], table: str, ids: Sequence[str]) -> None:
    with db.cursor() as cursor:
        if len(ids) == 1:
            cursor.execute(_INSERT.format(table), (ids[0],), prepare=True)
        else:
            cursor.executemany(_INSERT.format(table), [(id,) for id in ids])


def _rate(batches: Iterator[int], count: int) -> float:
    """The first batch warms up and is not counted. The topic holds one message more, with which its filling began."""
    until = time.perf_counter() + PATIENCE
    first = next(some for some in batches if some or time.perf_counter() > until)
    began = time.perf_counter()
    done = first
    while done < count and time.perf_counter() < until:
        done += next(batches)
    if done < count:
        raise RuntimeError(f"{done} of {count} were charged")
    return (done - first) / (time.perf_counter() - began)


def works(broker: Broker, store: str, scale: float, *, dbos: bool) -> Sequence[Work]:
    def fill(count: int) -> Callable[[str], Call]:
        return lambda topic: Call("raw_kafka", "send", (broker.servers, topic, count, SIZE))

    def side(name: str, function: str, most: int, count: int) -> Side:
        return Side(name, lambda topic: Call("effects", function, (store, broker.url, topic, count, most)), fill(count))

    found = []
    for most, count in ((TOGETHER, round(60_000 * scale)), (1, round(5_000 * scale))):
        sides = [
            side("brokerkit", "inbox", most, count),
            side("checkpoint", "checkpoint", most, count),
            side("raw", "without", most, count),
        ]
        if dbos and most == 1:
            sides.append(
                Side(
                    "dbos",
                    lambda topic, count=count: Call(  # type: ignore[misc]
                        "peer_dbos", "charge", (store, topic, count), python=str(PEERS_PYTHON)
                    ),
                )
            )
        found.append(Work(f"kafka into postgresql: charge, {most} a transaction", broker.url, sides))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.effects", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of messages")
    parser.add_argument("--dbos", action="store_true", help="DBOS beside it; `make peers` installs it")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    asked = parser.parse_args()
    rows = []
    with store() as url, started("kafka") as (broker, _):
        for work in works(broker, url, asked.scale, dbos=asked.dbos):
            row = measure(work, asked.rounds).as_dict()
            rows.append(row)
            shown = {
                name: round(rate)
                for name, rate in {"without dedup": row["raw"], "inbox": row["brokerkit"], **row["peers"]}.items()
                if rate
            }
            print(f"{row['work']}: {shown} {row['failed'] or ''}")
    return ended(rows, asked.json)


if __name__ == "__main__":
    sys.exit(main())
