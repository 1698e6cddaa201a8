"""The broker itself: what is done to the tables, each function inside a transaction that its caller holds.

Storing, handing out, settling, dead-lettering and forgetting. Times are milliseconds of the wall clock, which all
processes of the machine share.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from brokerkit.driver import Nack, Reject, Start, Subscription
from brokerkit.errors import NotFound, PositionLost
from brokerkit.message import Message
from brokerkit_sqlite.rows import COLUMNS, INSERT, Received, Row, decode_headers, encode_headers, size_of, to_rows
from brokerkit_sqlite.schema import MASK, NEVER, SHIFT, SIDE

DEAD = "dead"
"""The subscription that every dead-letter topic has."""

Connection = sqlite3.Connection


Token = tuple[int, int, int]
"""One handing-over: subscription, lease, seq. The lease is of one call of `hand_out` and of nothing else, so that a
late settlement finds nothing."""


class Group(NamedTuple):
    """A subscription as found when a session opened."""

    subscription: int
    topic: str
    name: str
    attempts: int | None
    dead_letter: str
    lease_ms: int


# ---------------------------------------------------------------- storing


class Place(NamedTuple):
    """Where a topic's next message goes."""

    topic: int
    last: int
    retention: int
    routable: bool


def find_topic(db: Connection, name: str) -> Place | None:
    row = db.execute(
        "SELECT topic, last, retention, EXISTS (SELECT 1 FROM subscriptions WHERE topic = t.topic) "
        "FROM topics t WHERE name = ?",
        (name,),
    ).fetchone()
    return None if row is None else Place(row[0], row[1], row[2], bool(row[3]))


def append(db: Connection, place: Place, messages: Sequence[Message], now: int, due: int | None = None) -> int:
    """Stores messages at the end of a topic; returns the first one's seq. `place` is of this transaction."""
    first = place.last + 1
    db.executemany(INSERT, to_rows(messages, first, now, due))
    db.execute("UPDATE topics SET last = ? WHERE topic = ?", (place.last + len(messages), place.topic))
    if place.retention:
        _expire_log(db, place.topic, now - place.retention, 2 * len(messages) + 100)
    return first


def append_aside(db: Connection, subscription: int, messages: Sequence[Message], now: int, due: int | None) -> int:
    """Stores messages for one subscription alone; returns the first one's seq."""
    (last,) = db.execute("SELECT last FROM topics WHERE topic = ?", (SIDE,)).fetchone()
    first: int = append(db, Place(SIDE, last, 0, True), messages, now)
    waiting = [(subscription, first + index, due or now) for index in range(len(messages))]
    db.executemany("INSERT INTO deliveries VALUES (?, ?, 0, ?, NULL)", waiting)
    return first


def append_once(
    db: Connection, place: Place, messages: Sequence[Message], now: int, due: int | None, window: int
) -> list[int]:
    """As `append`, but a message whose id was sent before, within `window`, stays where it is. Returns each one's
    seq. Forgets older ids, a bounded number at a time."""
    db.execute(
        "DELETE FROM ids WHERE n IN (SELECT n FROM ids ORDER BY n LIMIT ?) AND at < ?",
        (2 * len(messages) + 100, now - window),
    )
    places: dict[str, int] = {}
    new: list[Message] = []
    for message in messages:
        if message.id in places:
            continue
        row = db.execute(
            "SELECT seq FROM ids WHERE topic = ? AND id = ? AND at >= ?", (place.topic, message.id, now - window)
        ).fetchone()
        places[message.id] = row[0] if row else place.last + 1 + len(new)
        if row is None:
            new.append(message)
    if new:
        append(db, place, new, now, due)
        db.executemany(
            "INSERT OR REPLACE INTO ids(topic, id, seq, at) VALUES (?, ?, ?, ?)",
            [(place.topic, message.id, places[message.id], now) for message in new],
        )
    return [places[message.id] for message in messages]


# ---------------------------------------------------------------- handing out


def next_due(db: Connection, subscription: int) -> int | None:
    """When there may be something to hand out: 0 for at once, NEVER for nothing in sight, None if it is deleted."""
    row = db.execute(
        "SELECT CASE WHEN s.next <= t.last THEN 0 ELSE min(s.expiry, ifnull((SELECT due FROM deliveries d "
        f"WHERE d.subscription = s.subscription AND lease IS NULL ORDER BY due LIMIT 1), {NEVER})) END "
        "FROM subscriptions s JOIN topics t USING (topic) WHERE s.subscription = ?",
        (subscription,),
    ).fetchone()
    return None if row is None else row[0]


class Limits(NamedTuple):
    """How much may be handed out: messages, and bytes beyond which nothing follows the first message."""

    messages: int
    size: int


def hand_out(db: Connection, group: Group, limits: Limits, lease: int, now: int, counts: bool) -> list[Received]:
    """Leases what is due, then what is new. `counts`: whether the attempt counts.

    Where it does not (at most once: the ack comes before anybody sees the message), what was handed out before
    is dropped instead of handed out again.
    """
    found = db.execute(
        "SELECT s.next, t.last, s.expiry FROM subscriptions s JOIN topics t USING (topic) WHERE subscription = ?",
        (group.subscription,),
    ).fetchone()
    if found is None:
        return []
    start, last, expiry = found
    if expiry <= now:
        expiry = _end_leases(db, group.subscription, now)
    until = now + group.lease_ms
    taken = _due(db, group, limits, lease, until, now, counts)
    following = start
    if len(taken) < limits.messages and start <= last:
        left = Limits(limits.messages - len(taken), limits.size - sum(received.size for received in taken))
        if left.size > 0 or not taken:
            more, following = _new(db, group, start, last, left, lease, until, now, counts)
            taken += more
    if taken:
        expiry = min(expiry, until)
    if taken or following != start or expiry != found[2]:
        db.execute(
            "UPDATE subscriptions SET next = ?, expiry = ? WHERE subscription = ?",
            (following, expiry, group.subscription),
        )
    return taken


def _end_leases(db: Connection, subscription: int, now: int) -> int:
    """Lets what is past its lease wait again, at the place of its lease's end; returns the next lease's end."""
    db.execute(
        "UPDATE deliveries SET lease = NULL WHERE subscription = ? AND lease IS NOT NULL AND due <= ?",
        (subscription, now),
    )
    (expiry,) = db.execute(
        f"SELECT ifnull(min(due), {NEVER}) FROM deliveries WHERE subscription = ? AND lease IS NOT NULL",
        (subscription,),
    ).fetchone()
    return int(expiry)


def _due(
    db: Connection, group: Group, limits: Limits, lease: int, until: int, now: int, counts: bool
) -> list[Received]:
    waiting = db.execute(
        f"SELECT {COLUMNS}, attempt FROM deliveries INDEXED BY waiting JOIN messages USING (seq) WHERE "
        "subscription = ? AND lease IS NULL AND deliveries.due <= ? ORDER BY deliveries.due, deliveries.seq LIMIT ?",
        (group.subscription, now, limits.messages),
    )
    taken: list[Received] = []
    spent: list[tuple[int, int]] = []
    size = 0
    for *row, attempt in waiting:
        if attempt and (not counts or (group.attempts is not None and attempt >= group.attempts)):
            spent.append((row[0], attempt))
            continue
        size += size_of(row := tuple(row))
        if taken and size > limits.size:
            break
        taken.append(Received(row, (group.subscription, lease, row[0]), attempt + 1, group.topic))
    waiting.close()
    db.executemany(
        "UPDATE deliveries SET lease = ?, due = ?, attempt = attempt + ? WHERE subscription = ? AND seq = ?",
        [(lease, until, counts, group.subscription, received.native[0]) for received in taken],
    )
    for seq, attempt in spent:
        if counts:
            dead_letter(db, group, seq, attempt, f"handed out {attempt} times without an ack", now)
        _forget(db, group.subscription, seq)
    return taken


def _new(
    db: Connection,
    group: Group,
    start: int,
    last: int,
    limits: Limits,
    lease: int,
    until: int,
    now: int,
    counts: bool,
) -> tuple[list[Received], int]:
    """From the cursor on; what is delayed waits in `deliveries`. Also returns where the cursor goes."""
    rows = db.execute(
        f"SELECT {COLUMNS}, due FROM messages WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
        (start, last, limits.messages),
    )
    taken: list[Received] = []
    delayed: list[tuple[int, int, int]] = []
    subscription, topic = group.subscription, group.topic
    size = 0
    following = start
    for row in rows:
        seq = row[0]
        if row[7] is not None and row[7] > now:
            delayed.append((subscription, seq, row[7]))
        else:
            received = Received(row, (subscription, lease, seq), 1, topic)
            size += received.size
            if taken and size > limits.size:
                break
            taken.append(received)
        following = seq + 1
    else:
        if len(taken) + len(delayed) < limits.messages:
            following = last + 1
    rows.close()
    if delayed:
        db.executemany("INSERT INTO deliveries VALUES (?, ?, 0, ?, NULL)", delayed)
    db.executemany(
        f"INSERT INTO deliveries VALUES ({subscription}, ?, {int(counts)}, {until}, {lease})",
        [(received.native[0],) for received in taken],
    )
    return taken, following


# ---------------------------------------------------------------- settling


def runs(tokens: Iterable[Token]) -> Iterator[tuple[int, int, int, int]]:
    """Tokens as stretches that lie side by side: (subscription, lease, first, last)."""
    ordered = sorted(tokens)
    if not ordered:
        return
    subscription, lease, first = ordered[0]
    last = first - 1
    for token in ordered:
        seq = token[2]
        if seq == last + 1 and token[1] == lease and token[0] == subscription:
            last = seq
            continue
        yield subscription, lease, first, last
        subscription, lease, first = token
        last = seq
    yield subscription, lease, first, last


def settle(
    db: Connection,
    groups: Mapping[int, Group],
    acks: Sequence[Token],
    nacks: Iterable[Nack],
    rejects: Iterable[Reject],
    now: int,
) -> set[Token]:
    """All of it; returns the tokens whose lease was no longer theirs."""
    return ack(db, acks) | nack(db, groups, nacks, now) | reject(db, groups, rejects, now)


def ack(db: Connection, tokens: Sequence[Token]) -> set[Token]:
    """Settles for good. Returns the tokens that are lost."""
    lost: set[Token] = set()
    for subscription, lease, first, last in runs(tokens):
        done = db.execute(
            "DELETE FROM deliveries WHERE subscription = ? AND seq BETWEEN ? AND ? AND lease = ? RETURNING seq",
            (subscription, first, last, lease),
        ).fetchall()
        if len(done) <= last - first:
            gone = set(range(first, last + 1)).difference(seq for (seq,) in done)
            lost.update((subscription, lease, seq) for seq in gone)
        if done:
            collect(db, first, last)
    return lost


def extend(db: Connection, tokens: Sequence[Token], until: int) -> list[Token]:
    """Moves the ends of leases; returns those that were over."""
    lost: list[Token] = []
    for subscription, lease, first, last in runs(tokens):
        done = db.execute(
            "UPDATE deliveries SET due = ? WHERE subscription = ? AND seq BETWEEN ? AND ? AND lease = ? RETURNING seq",
            (until, subscription, first, last, lease),
        ).fetchall()
        if len(done) <= last - first:
            gone = set(range(first, last + 1)).difference(seq for (seq,) in done)
            lost += [(subscription, lease, seq) for seq in gone]
    for subscription in {token[0] for token in tokens}:
        db.execute(
            "UPDATE subscriptions SET expiry = ? WHERE subscription = ? AND expiry > ?", (until, subscription, until)
        )
    return lost


def nack(db: Connection, groups: Mapping[int, Group], nacks: Iterable[Nack], now: int) -> set[Token]:
    """Lets messages wait again, or dead-letters them at their last attempt. Returns the tokens that are lost."""
    lost = set()
    for token, delay, unstarted in nacks:
        subscription, lease, seq = token
        row = db.execute(
            "UPDATE deliveries SET lease = NULL, due = ?, attempt = max(0, attempt - ?) "
            "WHERE subscription = ? AND seq = ? AND lease = ? RETURNING attempt",
            (now + round(delay * 1000), unstarted, subscription, seq, lease),
        ).fetchone()
        if row is None:
            lost.add(token)
            continue
        group = groups[subscription]
        if group.attempts is not None and row[0] >= group.attempts and not unstarted:
            dead_letter(db, group, seq, row[0], f"given back {row[0]} times", now)
            _forget(db, subscription, seq)
    return lost


def reject(db: Connection, groups: Mapping[int, Group], rejects: Iterable[Reject], now: int) -> set[Token]:
    """Moves messages to the dead letters. Returns the tokens that are lost."""
    lost = set()
    for token, reason in rejects:
        subscription, lease, seq = token
        row = db.execute(
            "SELECT attempt FROM deliveries WHERE subscription = ? AND seq = ? AND lease = ?",
            (subscription, seq, lease),
        ).fetchone()
        if row is None:
            lost.add(token)
            continue
        dead_letter(db, groups[subscription], seq, row[0], reason, now)
        _forget(db, subscription, seq)
    return lost


def dead_letter(db: Connection, group: Group, seq: int, attempt: int, reason: str, now: int) -> None:
    """Stores a copy at the end of the dead-letter topic, which is made anew if somebody deleted it."""
    row: Row | None = db.execute(f"SELECT {COLUMNS} FROM messages WHERE seq = ?", (seq,)).fetchone()
    if row is None:
        return
    make_dead_letters(db, group.dead_letter)
    place = find_topic(db, group.dead_letter)
    assert place is not None
    message = Received(row, None, attempt, group.topic)
    headers = {
        **decode_headers(row[5]),
        "brokerkit-dead-reason": reason,
        "brokerkit-attempt": str(attempt),
    }
    copy = (
        place.last + 1,
        message.id,
        message.key,
        message.content_type,
        message.published_at,
        now,
        None,
        encode_headers(headers),
        message.body,
    )
    db.execute(INSERT, copy)
    db.execute("UPDATE topics SET last = last + 1 WHERE topic = ?", (place.topic,))


def make_dead_letters(db: Connection, name: str) -> None:
    """A dead-letter topic has a subscription, so that nothing sent there is dropped."""
    topic = make_topic(db, name, 0)
    db.execute(
        "INSERT OR IGNORE INTO subscriptions(topic, name, next) SELECT topic, ?, last + 1 FROM topics WHERE topic = ?",
        (DEAD, topic),
    )


def make_topic(db: Connection, name: str, retention: int) -> int:
    """The topic's number; `retention` matters only when it is new."""
    row = db.execute("SELECT topic FROM topics WHERE name = ?", (name,)).fetchone()
    if row is not None:
        return int(row[0])
    made = db.execute("INSERT INTO topics(name, last, retention) VALUES (?, 0, ?)", (name, retention)).lastrowid
    assert made is not None
    db.execute(
        "UPDATE topics SET last = ?, floor = ? WHERE topic = ?",
        (made << SHIFT, (made << SHIFT) + 1 if retention else NEVER, made),
    )
    return made


def _forget(db: Connection, subscription: int, seq: int) -> None:
    db.execute("DELETE FROM deliveries WHERE subscription = ? AND seq = ?", (subscription, seq))
    collect(db, seq, seq)


# ---------------------------------------------------------------- subscriptions


def find_group(db: Connection, topic: str, subscription: Subscription, lease_seconds: float) -> Group:
    """What the file says of a subscription, with what the consumer was told on top. Raises NotFound."""
    row = db.execute(
        "SELECT subscription, attempts, dead_letter, s.lease_seconds FROM subscriptions s JOIN topics t USING (topic) "
        "WHERE t.name = ? AND s.name = ?",
        (topic, subscription.name),
    ).fetchone()
    if row is None:
        raise NotFound(f"topic {topic!r} has no subscription {subscription.name!r} in this file: declare it")
    number, attempts, dead, lease = row
    return Group(
        number,
        topic,
        subscription.name,
        attempts if subscription.attempts is None else subscription.attempts,
        subscription.dead_letter or dead or f"{topic}-dead",
        round((lease or lease_seconds) * 1000),
    )


def cursor(db: Connection, group: Group) -> int:
    """The seq from which on nothing was handed out yet."""
    row = db.execute("SELECT next FROM subscriptions WHERE subscription = ?", (group.subscription,)).fetchone()
    if row is None:
        raise NotFound(f"subscription {group.name!r} of topic {group.topic!r} was deleted")
    return int(row[0])


def seek(db: Connection, group: Group, place: int) -> None:
    """Moves the cursor of the whole subscription; what was handed out from there on is nobody's any more.

    Raises PositionLost where a message from there on is no longer kept.
    """
    start = cursor(db, group)
    (last,) = db.execute("SELECT last FROM topics WHERE topic = ?", (start >> SHIFT,)).fetchone()
    target = (start >> SHIFT << SHIFT) | place
    if target > last + 1:
        raise PositionLost(f"topic {group.topic!r} ends before {place}: its next message is {(last + 1) & MASK}")
    if target < start:
        (kept,) = db.execute("SELECT count(*) FROM messages WHERE seq >= ? AND seq < ?", (target, start)).fetchone()
        if kept < start - target:
            raise PositionLost(
                f"topic {group.topic!r} no longer holds every message from {place} on: declare it with "
                "native={'retention_seconds': …} to keep them"
            )
    db.execute("DELETE FROM deliveries WHERE subscription = ? AND seq >= ?", (group.subscription, target))
    db.execute("UPDATE subscriptions SET next = ? WHERE subscription = ?", (target, group.subscription))
    if target > start:
        collect(db, start, target - 1)


def release(db: Connection, subscription: int, session: int, now: int) -> None:
    """Ends at once every lease that a session holds."""
    db.execute(
        "UPDATE deliveries SET lease = NULL, due = ? WHERE subscription = ? AND lease BETWEEN ? AND ?",
        (now, subscription, session << 32, (session + 1 << 32) - 1),
    )


def take_over(db: Connection, subscription: int, instance: str, session: int, now: int) -> None:
    """Makes `session` the only owner of an instance's slot and ends the leases of the one before."""
    row = db.execute(
        "SELECT session FROM instances WHERE subscription = ? AND name = ?", (subscription, instance)
    ).fetchone()
    if row is not None:
        release(db, subscription, row[0], now)
    db.execute("INSERT OR REPLACE INTO instances VALUES (?, ?, ?)", (subscription, instance, session))


def is_current(db: Connection, subscription: int, instance: str, session: int) -> bool:
    row = db.execute(
        "SELECT session FROM instances WHERE subscription = ? AND name = ?", (subscription, instance)
    ).fetchone()
    return row is not None and row[0] == session


# ---------------------------------------------------------------- forgetting


def collect(db: Connection, first: int, last: int) -> None:
    """Deletes those of a topic's messages that lie below its floor and that no subscription needs."""
    topic = first >> SHIFT
    db.execute(
        "DELETE FROM messages WHERE seq BETWEEN ? AND ? AND seq < (SELECT floor FROM topics WHERE topic = ?) "
        "AND NOT EXISTS (SELECT 1 FROM subscriptions s WHERE s.topic = ? AND (s.next <= messages.seq OR EXISTS "
        "(SELECT 1 FROM deliveries d WHERE d.subscription = s.subscription AND d.seq = messages.seq)))",
        (first, last, topic, topic),
    )


def _expire_log(db: Connection, topic: int, stored_before: int, limit: int) -> None:
    """Raises a retaining topic's floor over what is old enough, a bounded number at a time."""
    (floor,) = db.execute("SELECT floor FROM topics WHERE topic = ?", (topic,)).fetchone()
    end = (topic + 1) << SHIFT
    raised = floor
    for seq, stored_at in db.execute(
        "SELECT seq, stored_at FROM messages WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?", (floor, end, limit)
    ):
        if stored_at >= stored_before:
            break
        raised = seq + 1
    if raised > floor:
        db.execute("UPDATE topics SET floor = ? WHERE topic = ?", (raised, topic))
        collect(db, floor, raised - 1)


# ---------------------------------------------------------------- declaring


def make_subscription(
    db: Connection, topic: int, name: str, start: Start, settings: Mapping[str, object], now: int
) -> None:
    """`earliest` begins with the oldest message that is still stored.

    From the oldest cursor, or the floor, on every message is there, and the new cursor begins there; of those before,
    the ones still stored get a row in `deliveries`.
    """
    (last,) = db.execute("SELECT last FROM topics WHERE topic = ?", (topic,)).fetchone()
    following = last + 1
    if start == "earliest":
        (following,) = db.execute(
            "SELECT min(?, floor, ifnull((SELECT min(next) FROM subscriptions s WHERE s.topic = t.topic), ?)) "
            "FROM topics t WHERE topic = ?",
            (last + 1, last + 1, topic),
        ).fetchone()
    columns = ", ".join(settings)
    made = db.execute(
        f"INSERT INTO subscriptions(topic, name, next, {columns}) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (topic, name, following, *settings.values()),
    ).lastrowid
    if start == "earliest":
        db.execute(
            "INSERT INTO deliveries SELECT ?, seq, 0, max(?, ifnull(due, 0)), NULL FROM messages "
            "WHERE seq >= ? AND seq < ?",
            (made, now, topic << SHIFT, following),
        )


def delete(db: Connection, topic: str, subscription: str | None) -> None:
    place = find_topic(db, topic)
    if place is None:
        return
    chosen = db.execute(
        "SELECT subscription FROM subscriptions WHERE topic = ? AND ifnull(name = ?, 1)", (place.topic, subscription)
    ).fetchall()
    for number in chosen:
        db.execute(
            "DELETE FROM messages WHERE seq IN (SELECT seq FROM deliveries WHERE subscription = ? AND seq < ?)",
            (*number, (SIDE + 1) << SHIFT),
        )
        for table in ("deliveries", "instances", "subscriptions"):
            db.execute(f"DELETE FROM {table} WHERE subscription = ?", number)
    first, last = place.topic << SHIFT, ((place.topic + 1) << SHIFT) - 1
    if subscription is not None:
        collect(db, first, last)
        return
    db.execute("DELETE FROM messages WHERE seq BETWEEN ? AND ?", (first, last))
    for table in ("ids", "topics"):
        db.execute(f"DELETE FROM {table} WHERE topic = ?", (place.topic,))


def depth(db: Connection, topic: str, subscription: str) -> int:
    row = db.execute(
        "SELECT t.last - s.next + 1 + (SELECT count(*) FROM deliveries d WHERE d.subscription = s.subscription) "
        "FROM subscriptions s JOIN topics t USING (topic) WHERE t.name = ? AND s.name = ?",
        (topic, subscription),
    ).fetchone()
    if row is None:
        raise NotFound(f"topic {topic!r} has no subscription {subscription!r} in this file")
    return int(row[0])
