"""What a large table of seen messages costs: `python -m benchmarks.inbox_table [--rows N] [--small N] [--json FILE]`.

Transactions of two hundred marks and two hundred rows, one after the other, on one PostgreSQL: with few marks in the
table and with many; with ids in the order of time, brokerkit's own (which are in order for each producer), and random
ones; and beside a prune of half of the many, in batches of a thousand as `brokerkit once prune` does. Milliseconds a
transaction, p50 and p99.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import timedelta
from statistics import median, quantiles
from typing import Any
from uuid import uuid4

import psycopg

from benchmarks.brokers import store
from brokerkit import once
from brokerkit.message import outgoing
from brokerkit.once.stores import store_for

TOGETHER = 200
CONSUMER = "payments--ledger"
_OLD = timedelta(days=2)
_FILL = """\
insert into brokerkit_inbox (consumer, message_id, seen_at)
select %s, {id}, now() - case when n %% 2 = 0 then interval '3 days' else interval '0' end
from generate_series(1, %s) as n"""
_KINDS: Mapping[str, tuple[str, Callable[[], str]]] = {
    "time-ordered ids": (
        "lpad(to_hex(n), 16, '0') || lpad(to_hex((random() * 2147483647)::bigint), 16, '0')",
        lambda: f"{time.time_ns():016x}{secrets.token_hex(8)}",
    ),
    "brokerkit's ids": ("md5((n / 10000)::text) || to_hex(n % 10000)", lambda: outgoing(b"").id),
    "random ids": ("gen_random_uuid()::text", lambda: str(uuid4())),
}
"""How the table is filled, and how the ids of the transactions are made."""


def transactions(url: str, seconds: float, id: Callable[[], str], until: threading.Event | None = None) -> list[float]:
    """Seconds of each, for so long, or until told."""
    inbox, took = store_for(url), []
    with closing(inbox.connect(url)) as db:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end and not (until is not None and until.is_set()):
            ids = sorted(id() for _ in range(TOGETHER))
            began = time.perf_counter()
            fresh = inbox.begin_fresh(db, CONSUMER, ids)
            with db.cursor() as cursor:
                cursor.executemany("insert into charges (id, dollars) values (%s, 50)", [(id,) for id in sorted(fresh)])
            inbox.commit(db)
            took.append(time.perf_counter() - began)
            if len(fresh) != TOGETHER:
                raise RuntimeError(f"only {len(fresh)} of {TOGETHER} were new")
    return took


def filled(url: str, rows: int, id: str) -> None:
    """Nothing but `rows` marks, half of them old, and no charges."""
    with closing(psycopg.connect(url, autocommit=True)) as db:
        db.execute("truncate brokerkit_inbox, charges")
        db.execute(_FILL.format(id=id.replace("%", "%%")), (CONSUMER, rows))  # type: ignore[arg-type]
        db.execute("vacuum analyze brokerkit_inbox")
        db.execute("checkpoint")


def said(took: list[float]) -> dict[str, Any]:
    return {
        "transactions": len(took),
        "p50 ms": round(median(took) * 1e3, 2),
        "p99 ms": round(quantiles(took, n=100)[98] * 1e3, 2),
    }


def rows(url: str, few: int, many: int, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, (fill, id) in reversed(_KINDS.items()):
        for count in (few, many):
            filled(url, count, fill)
            transactions(url, seconds / 4, id)
            yield f"{count:,} rows, {name}", said(transactions(url, seconds, id))
    yield f"{many:,} rows, {name}, while half are pruned", pruned(url, id)


def pruned(url: str, id: Callable[[], str]) -> dict[str, Any]:
    over = threading.Event()
    found = {}

    def prune() -> None:
        began = time.perf_counter()
        found["pruned"] = once.prune(url, _OLD)
        found["pruning s"] = round(time.perf_counter() - began, 1)
        over.set()

    thread = threading.Thread(target=prune)
    thread.start()
    took = transactions(url, 600.0, id, over)
    thread.join()
    return said(took) | found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inbox_table", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="that each is measured for")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    asked = parser.parse_args()
    found = {}
    with store() as url:
        with closing(psycopg.connect(url, autocommit=True)) as db:
            db.execute("create table charges (id text not null, dollars integer not null)")
        for name, figures in rows(url, asked.small, asked.rows, asked.seconds):
            found[name] = figures
            print(f"{name}: {figures}", flush=True)
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump(found, file, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
