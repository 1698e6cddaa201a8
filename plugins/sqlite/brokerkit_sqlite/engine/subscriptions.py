"""Topics and subscriptions: declared, found, moved, deleted, and who of an instance's owners is the last."""

from __future__ import annotations

from collections.abc import Mapping
from sqlite3 import Connection
from typing import NamedTuple

from brokerkit.driver import Position, Start, Subscription
from brokerkit.errors import ConfigurationError, NotFound, PositionLost
from brokerkit_sqlite.engine.schema import MASK, NEVER, SHIFT, SIDE
from brokerkit_sqlite.engine.storing import collect, find_topic

DEAD = "dead"
"""The subscription that every dead-letter topic has."""


class Group(NamedTuple):
    """A subscription as one receiver takes part in it."""

    subscription: int
    topic: str
    name: str
    attempts: int | None
    dead_letter: str
    lease_ms: int
    counts: bool
    """Whether a handing-over counts as an attempt. Where it does not (at most once: the ack comes before anybody sees
    the message), what was handed out before is dropped instead of handed out again."""


# ---------------------------------------------------------------- declaring


def declare_topic(db: Connection, name: str, retention: float | None, default: float) -> None:
    """`retention` in seconds, if it matters; else a new topic has the `default`."""
    known = db.execute("SELECT retention FROM topics WHERE name = ?", (name,)).fetchone()
    if known is None:
        _make_topic(db, name, _ms(default if retention is None else retention))
    elif retention is not None and known[0] != _ms(retention):
        raise ConfigurationError(f"topic {name!r} is there with retention_seconds {known[0] / 1000}, not {retention}")


def declare_subscription(
    db: Connection, topic: str, subscription: Subscription, lease_seconds: float | None, now: int
) -> None:
    if subscription.retry == "block":
        raise ConfigurationError(
            "retry='block' is not offered by sqlite, which delays a nacked message while the others go on: leave it out"
        )
    if subscription.dead_letter is not None or subscription.attempts is not None:
        make_dead_letters(db, subscription.dead_letter or f"{topic}-dead")
    wanted = {
        "attempts": subscription.attempts,
        "dead_letter": subscription.dead_letter,
        "handling_seconds": subscription.handling_seconds,
        "lease_seconds": lease_seconds,
    }
    known = db.execute(
        f"SELECT {', '.join(f's.{name}' for name in wanted)} FROM subscriptions s JOIN topics t USING (topic) "
        "WHERE t.name = ? AND s.name = ?",
        (topic, subscription.name),
    ).fetchone()
    if known is None:
        _make_subscription(db, topic, subscription.name, subscription.start, wanted, now)
        return
    for (setting, value), there in zip(wanted.items(), known, strict=True):
        if value is not None and value != there:
            raise ConfigurationError(
                f"subscription {subscription.name!r} of topic {topic!r} is there with {setting} {there}, not {value}: "
                "delete it first, or declare it as it is"
            )


def make_dead_letters(db: Connection, name: str) -> None:
    """A dead-letter topic has a subscription, so that nothing sent there is dropped."""
    if find_topic(db, name) is None:
        _make_topic(db, name, 0)
    db.execute(
        "INSERT OR IGNORE INTO subscriptions(topic, name, next) SELECT topic, ?, last + 1 FROM topics WHERE name = ?",
        (DEAD, name),
    )


def _make_topic(db: Connection, name: str, retention: int) -> None:
    made = db.execute("INSERT INTO topics(name, last, retention) VALUES (?, 0, ?)", (name, retention)).lastrowid
    assert made is not None
    db.execute(
        "UPDATE topics SET last = ?, floor = ? WHERE topic = ?",
        (made << SHIFT, (made << SHIFT) + 1 if retention else NEVER, made),
    )


def _make_subscription(
    db: Connection, topic: str, name: str, start: Start, settings: Mapping[str, object], now: int
) -> None:
    """`earliest` begins with the oldest message that is still stored.

    From the oldest cursor, or the floor, on every message is there, and the new cursor begins there; of those before,
    the ones still stored get a row in `deliveries`.
    """
    number, end, oldest = db.execute(
        "SELECT topic, last + 1, min(last + 1, floor, ifnull((SELECT min(next) FROM subscriptions s "
        f"WHERE s.topic = t.topic), {NEVER})) FROM topics t WHERE name = ?",
        (topic,),
    ).fetchone()
    earliest = start == "earliest"
    following = oldest if earliest else end
    made = db.execute(
        f"INSERT INTO subscriptions(topic, name, next, {', '.join(settings)}) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (number, name, following, *settings.values()),
    ).lastrowid
    if earliest:
        db.execute(
            "INSERT INTO deliveries SELECT ?, seq, 0, max(?, ifnull(due, 0)), NULL FROM messages "
            "WHERE seq >= ? AND seq < ?",
            (made, now, number << SHIFT, following),
        )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


# ---------------------------------------------------------------- finding


def find_group(
    db: Connection, topic: str, subscription: Subscription, lease_seconds: float, *, counts: bool = True
) -> Group:
    """What the file says of a subscription, with what the consumer was told on top. Raises NotFound."""
    row = db.execute(
        "SELECT subscription, attempts, dead_letter, s.lease_seconds FROM subscriptions s JOIN topics t USING (topic) "
        "WHERE t.name = ? AND s.name = ?",
        (topic, subscription.name),
    ).fetchone()
    if row is None:
        raise _missing(topic, subscription.name)
    number, attempts, dead, lease = row
    return Group(
        number,
        topic,
        subscription.name,
        attempts if subscription.attempts is None else subscription.attempts,
        subscription.dead_letter or dead or f"{topic}-dead",
        _ms(lease or lease_seconds),
        counts,
    )


def depth(db: Connection, topic: str, subscription: str) -> int:
    row = db.execute(
        "SELECT t.last - s.next + 1 + (SELECT count(*) FROM deliveries d WHERE d.subscription = s.subscription) "
        "FROM subscriptions s JOIN topics t USING (topic) WHERE t.name = ? AND s.name = ?",
        (topic, subscription),
    ).fetchone()
    if row is None:
        raise _missing(topic, subscription)
    return int(row[0])


def _missing(topic: str, subscription: str) -> NotFound:
    return NotFound(f"topic {topic!r} has no subscription {subscription!r} in this file: declare it")


# ---------------------------------------------------------------- the cursor


def cursor(db: Connection, group: Group) -> int:
    """The seq from which on nothing was handed out yet."""
    row = db.execute("SELECT next FROM subscriptions WHERE subscription = ?", (group.subscription,)).fetchone()
    if row is None:
        raise _missing(group.topic, group.name)
    return int(row[0])


def seek(db: Connection, group: Group, position: Position) -> None:
    """Moves the cursor of the whole subscription; what was handed out from there on is nobody's any more.

    Raises PositionLost where a message from there on is no longer kept.
    """
    place = position.value
    if not isinstance(place, int) or not 0 < place <= MASK:
        raise PositionLost(f"{position} is no place in a sqlite topic: values are 1, 2, 3, …")
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
    collect(db, start, target - 1)


# ---------------------------------------------------------------- sessions


def new_session(db: Connection) -> int:
    """A number for the leases of one session."""
    row = db.execute("UPDATE facts SET value = value + 1 WHERE name = 'session' RETURNING value").fetchone()
    return int(row[0])


def lease_number(session: int, count: int) -> int:
    return session << 32 | count


def release(db: Connection, subscription: int, session: int, now: int) -> None:
    """Ends at once every lease that a session holds."""
    db.execute(
        "UPDATE deliveries SET lease = NULL, due = ? WHERE subscription = ? AND lease BETWEEN ? AND ?",
        (now, subscription, lease_number(session, 0), lease_number(session + 1, 0) - 1),
    )


def take_over(db: Connection, subscription: int, instance: str, session: int, now: int) -> None:
    """Makes `session` the only owner of an instance's slot and ends the leases of the one before."""
    before = owner(db, subscription, instance)
    if before is not None:
        release(db, subscription, before, now)
    db.execute("INSERT OR REPLACE INTO instances VALUES (?, ?, ?)", (subscription, instance, session))


def owner(db: Connection, subscription: int, instance: str) -> int | None:
    """The session that owns an instance's slot."""
    row = db.execute(
        "SELECT session FROM instances WHERE subscription = ? AND name = ?", (subscription, instance)
    ).fetchone()
    return None if row is None else row[0]


# ---------------------------------------------------------------- deleting


def delete(db: Connection, topic: str, subscription: str | None) -> None:
    """Deletes a subscription, or a topic with all of them; what is missing is no error."""
    found = find_topic(db, topic)
    if found is None:
        return
    chosen = db.execute(
        "SELECT subscription FROM subscriptions WHERE topic = ? AND ifnull(name = ?, 1)", (found.number, subscription)
    ).fetchall()
    for number in chosen:
        db.execute(
            "DELETE FROM messages WHERE seq IN (SELECT seq FROM deliveries WHERE subscription = ? AND seq < ?)",
            (*number, (SIDE + 1) << SHIFT),
        )
        for table in ("deliveries", "instances", "subscriptions"):
            db.execute(f"DELETE FROM {table} WHERE subscription = ?", number)
    first, last = found.number << SHIFT, ((found.number + 1) << SHIFT) - 1
    if subscription is not None:
        collect(db, first, last)
        return
    db.execute("DELETE FROM messages WHERE seq BETWEEN ? AND ?", (first, last))
    for table in ("ids", "topics"):
        db.execute(f"DELETE FROM {table} WHERE topic = ?", (found.number,))
