"""A SQLite file as a queue, by hand: the loop that brokerkit's sqlite plugin is measured against.

Best practice for one queue and one group of consumers: WAL, synchronous=FULL, one transaction per batch, small
lease rows beside the messages, so that leasing and settling rewrite no body. The same columns are written and read as
the plugin's: an id made per message, headers as JSON, times. No fan-out, attempts, dead letters, delays or checks
that a lease is still ours.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from pathlib import Path

_LEASE_MS = 30_000


def open_queue(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=10.0)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA cache_size=-16384")
    db.execute(
        "CREATE TABLE IF NOT EXISTS messages(seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, key TEXT, "
        "content_type TEXT, published_at INTEGER, headers TEXT, body BLOB)"
    )
    db.execute("CREATE TABLE IF NOT EXISTS leases(seq INTEGER PRIMARY KEY, until INTEGER)")
    return db


def send(path: Path, count: int, size: int, batch: int) -> float:
    """Messages stored per second, `batch` to a commit."""
    db = open_queue(path)
    body = os.urandom(size)
    prefix = os.urandom(12).hex() + "-"
    encode = json.JSONEncoder(separators=(",", ":")).encode
    started = time.perf_counter()
    for first in range(0, count, batch):
        rows = [
            (f"{prefix}{number:x}", None, None, time.time_ns() // 1_000_000, encode({"kind": "bench"}), body)
            for number in range(first, min(first + batch, count))
        ]
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            "INSERT INTO messages(id, key, content_type, published_at, headers, body) VALUES (?,?,?,?,?,?)", rows
        )
        db.execute("COMMIT")
    rate = count / (time.perf_counter() - started)
    db.close()
    return rate


def receive(path: Path, count: int, batch: int) -> float:
    """Messages leased, read (id and headers decoded) and deleted per second: two commits to a batch."""
    db = open_queue(path)
    done = 0
    started = time.perf_counter()
    while done < count:
        now = time.time_ns() // 1_000_000
        db.execute("BEGIN IMMEDIATE")
        rows = db.execute(
            "SELECT seq, id, key, content_type, published_at, headers, body FROM messages m WHERE NOT EXISTS "
            "(SELECT 1 FROM leases l WHERE l.seq = m.seq AND l.until > ?) ORDER BY seq LIMIT ?",
            (now, batch),
        ).fetchall()
        db.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?)", [(row[0], now + _LEASE_MS) for row in rows])
        db.execute("COMMIT")
        if not rows:
            raise RuntimeError(f"the queue ran dry after {done} of {count} messages")
        for row in rows:
            json.loads(row[5])
        db.execute("BEGIN IMMEDIATE")
        db.executemany("DELETE FROM leases WHERE seq = ?", [(row[0],) for row in rows])
        db.executemany("DELETE FROM messages WHERE seq = ?", [(row[0],) for row in rows])
        db.execute("COMMIT")
        done += len(rows)
    rate = done / (time.perf_counter() - started)
    db.close()
    return rate
