"""Handing out: what is due and what is new, under a lease."""

from __future__ import annotations

from sqlite3 import Connection
from typing import NamedTuple

from brokerkit_sqlite.engine.rows import COLUMNS, Row, size_of, within
from brokerkit_sqlite.engine.schema import NEVER
from brokerkit_sqlite.engine.settling import bury, forget
from brokerkit_sqlite.engine.subscriptions import Group


class Limits(NamedTuple):
    """How much may be handed out: messages, and bytes beyond which nothing follows the first message."""

    messages: int
    size: int


class Lease(NamedTuple):
    """One handing-over. `number` is of one call of `hand_out` and of nothing else, so that a late settlement finds
    nothing."""

    number: int
    until: int


def next_due(db: Connection, subscription: int) -> int | None:
    """When there may be something to hand out: 0 for at once, NEVER for nothing in sight, None if it is deleted."""
    row = db.execute(
        "SELECT CASE WHEN s.next <= t.last THEN 0 ELSE min(s.expiry, ifnull((SELECT due FROM deliveries d "
        f"WHERE d.subscription = s.subscription AND lease IS NULL ORDER BY due LIMIT 1), {NEVER})) END "
        "FROM subscriptions s JOIN topics t USING (topic) WHERE s.subscription = ?",
        (subscription,),
    ).fetchone()
    return None if row is None else row[0]


def hand_out(db: Connection, group: Group, limits: Limits, lease: Lease, now: int) -> list[Row]:
    """Leases what is due, then what is new."""
    found = db.execute(
        "SELECT s.next, t.last, s.expiry FROM subscriptions s JOIN topics t USING (topic) WHERE subscription = ?",
        (group.subscription,),
    ).fetchone()
    if found is None:
        return []
    start, last, expiry = found
    if expiry <= now:
        _end_leases(db, group.subscription, now)
    taken = _due(db, group, limits, lease, now)
    left = Limits(limits.messages - len(taken), limits.size - sum(map(size_of, taken)))
    if start <= last and left.messages > 0 and (left.size > 0 or not taken):
        new, start = _new(db, group, start, last, left, lease, now)
        taken += new
    db.execute(
        "UPDATE subscriptions SET next = ?, expiry = min(expiry, ?) WHERE subscription = ?",
        (start, lease.until if taken else NEVER, group.subscription),
    )
    return taken


def _end_leases(db: Connection, subscription: int, now: int) -> None:
    """Lets what is past its lease wait again, at the place of its lease's end."""
    db.execute(
        "UPDATE deliveries SET lease = NULL WHERE subscription = ? AND lease IS NOT NULL AND due <= ?",
        (subscription, now),
    )
    db.execute(
        f"UPDATE subscriptions SET expiry = ifnull((SELECT min(due) FROM deliveries WHERE subscription = ?1 "
        f"AND lease IS NOT NULL), {NEVER}) WHERE subscription = ?1",
        (subscription,),
    )


def _due(db: Connection, group: Group, limits: Limits, lease: Lease, now: int) -> list[Row]:
    waiting = db.execute(
        f"SELECT {COLUMNS}, attempt FROM deliveries INDEXED BY waiting JOIN messages USING (seq) WHERE "
        "subscription = ? AND lease IS NULL AND deliveries.due <= ? ORDER BY deliveries.due, deliveries.seq LIMIT ?",
        (group.subscription, now, limits.messages),
    )
    taken: list[Row] = []
    spent: list[Row] = []
    most = group.attempts if group.counts else 1
    for row in within(waiting, limits.size):
        (taken if most is None or row[7] < most else spent).append(row)
    waiting.close()
    db.executemany(
        "UPDATE deliveries SET lease = ?, due = ?, attempt = attempt + ? WHERE subscription = ? AND seq = ?",
        [(lease.number, lease.until, group.counts, group.subscription, row[0]) for row in taken],
    )
    for seq, *_, attempt in spent:
        if group.counts:
            bury(db, group, seq, attempt, f"handed out {attempt} times without an ack", now)
        else:
            forget(db, group.subscription, seq)
    return taken


def _new(
    db: Connection, group: Group, start: int, last: int, limits: Limits, lease: Lease, now: int
) -> tuple[list[Row], int]:
    """From the cursor on; what is delayed waits in `deliveries`. Also returns where the cursor goes."""
    rows = db.execute(
        f"SELECT {COLUMNS}, 0, due FROM messages WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
        (start, last, limits.messages),
    )
    found = list(within(rows, limits.size))
    rows.close()
    following: int = found[-1][0] + 1 if found else last + 1
    db.execute(
        "INSERT INTO deliveries SELECT ?1, seq, ?2, ?3, ?4 FROM messages WHERE seq >= ?5 AND seq < ?6 "
        "AND ifnull(due, 0) <= ?7",
        (group.subscription, group.counts, lease.until, lease.number, start, following, now),
    )
    taken = [row for row in found if row[8] is None or row[8] <= now]
    if len(taken) < len(found):
        db.execute(
            "INSERT INTO deliveries SELECT ?, seq, 0, due, NULL FROM messages WHERE seq >= ? AND seq < ? AND due > ?",
            (group.subscription, start, following, now),
        )
    return taken, following
