"""Storing messages in topics, and forgetting what nobody needs any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from sqlite3 import Connection
from typing import NamedTuple

from brokerkit.errors import ConfigurationError, NotFound
from brokerkit.message import Message
from brokerkit_sqlite.engine.rows import INSERT, to_rows
from brokerkit_sqlite.engine.schema import SHIFT, SIDE


class Topic(NamedTuple):
    """As it is in the open transaction."""

    number: int
    last: int
    retention: int
    routable: bool
    """Whether it has a subscription, without which nothing sent to it would be kept."""


def find_topic(db: Connection, name: str) -> Topic | None:
    row = db.execute(
        "SELECT topic, last, retention, EXISTS (SELECT 1 FROM subscriptions WHERE topic = t.topic) "
        "FROM topics t WHERE name = ?",
        (name,),
    ).fetchone()
    return None if row is None else Topic(*row)


class Unfit(ConfigurationError):
    """A message that can never be stored."""


class TooLarge(Unfit):
    """Its body has more bytes than max_body_bytes."""


class Unroutable(NotFound):
    """The topic is there, and nothing sent to it would be kept."""


def find_routable(db: Connection, name: str) -> Topic:
    """The topic to send to; raises NotFound, or Unroutable."""
    topic = find_topic(db, name)
    if topic is None:
        raise NotFound(f"topic {name!r} is not in this file: declare it")
    if not topic.routable:
        raise Unroutable(f"topic {name!r} has no subscription, so nothing sent there would be kept: declare one")
    return topic


def check_bodies(messages: Sequence[Message], most: int) -> None:
    """Raises Unfit, or TooLarge."""
    for message in messages:
        body = message[0]
        if body is None:
            raise Unfit("a message without a body is a tombstone, which only Kafka has: send b''")
        if len(body) > most:
            raise TooLarge(f"the body has {len(body)} bytes, max_body_bytes is {most}")


def append(db: Connection, topic: Topic, messages: Sequence[Message], now: int, due: int | None = None) -> int:
    """Stores messages at the end of a topic; returns the first one's seq. Raises Unfit."""
    first = topic.last + 1
    with _fitting():
        db.executemany(INSERT, to_rows(messages, first, now, due))
    db.execute("UPDATE topics SET last = ? WHERE topic = ?", (topic.last + len(messages), topic.number))
    if topic.retention:
        _expire(db, topic.number, now - topic.retention, 2 * len(messages) + 100)
    return first


def append_aside(
    db: Connection, topic: str, subscription: str, messages: Sequence[Message], now: int, due: int | None
) -> int:
    """Stores messages for one subscription alone; returns the first one's seq."""
    found = db.execute(
        "SELECT subscription FROM subscriptions s JOIN topics t USING (topic) WHERE t.name = ? AND s.name = ?",
        (topic, subscription),
    ).fetchone()
    if found is None:
        raise Unroutable(f"topic {topic!r} has no subscription {subscription!r}: declare it")
    (last,) = db.execute("SELECT last FROM topics WHERE topic = ?", (SIDE,)).fetchone()
    first = append(db, Topic(SIDE, last, 0, True), messages, now)
    db.execute(
        "INSERT INTO deliveries SELECT ?, seq, 0, ?, NULL FROM messages WHERE seq BETWEEN ? AND ?",
        (*found, due or now, first, last + len(messages)),
    )
    return first


def append_once(
    db: Connection, topic: Topic, messages: Sequence[Message], now: int, due: int | None, window: int
) -> list[int]:
    """As `append`, but a message whose id was sent before, within `window`, stays where it is. Returns each one's
    seq. Forgets older ids, a bounded number at a time."""
    db.execute(
        "DELETE FROM ids WHERE n IN (SELECT n FROM ids ORDER BY n LIMIT ?) AND at < ?",
        (2 * len(messages) + 100, now - window),
    )
    known: dict[str, int] = {}
    new: list[Message] = []
    with _fitting():
        for message in messages:
            if message.id in known:
                continue
            row = db.execute(
                "SELECT seq FROM ids WHERE topic = ? AND id = ? AND at >= ?", (topic.number, message.id, now - window)
            ).fetchone()
            if row is None:
                new.append(message)
            known[message.id] = row[0] if row else topic.last + len(new)
    if new:
        append(db, topic, new, now, due)
        db.executemany(
            "INSERT OR REPLACE INTO ids(topic, id, seq, at) VALUES (?, ?, ?, ?)",
            [(topic.number, message.id, known[message.id], now) for message in new],
        )
    return [known[message.id] for message in messages]


def collect(db: Connection, first: int, last: int) -> None:
    """Deletes those of a topic's messages that lie below its floor and that no subscription needs: below every
    cursor, and not handed out or waiting."""
    topic = first >> SHIFT
    found = db.execute(
        "SELECT min(floor, ifnull((SELECT min(next) FROM subscriptions s WHERE s.topic = t.topic), floor)) "
        "FROM topics t WHERE topic = ?",
        (topic,),
    ).fetchone()
    if found is not None:
        db.execute(
            "DELETE FROM messages WHERE seq BETWEEN ?1 AND ?2 AND seq NOT IN (SELECT seq FROM subscriptions "
            "JOIN deliveries USING (subscription) WHERE topic = ?3 AND seq BETWEEN ?1 AND ?2)",
            (first, min(last, found[0] - 1), topic),
        )


@contextmanager
def _fitting() -> Iterator[None]:
    """What SQLite cannot hold, numbers over 64 bits and lone surrogates, is refused by name."""
    try:
        yield
    except (OverflowError, UnicodeError, TypeError) as error:
        raise Unfit(f"SQLite cannot hold it: {type(error).__name__}") from None


def _expire(db: Connection, topic: int, stored_before: int, limit: int) -> None:
    """Raises a retaining topic's floor over what is old enough, a bounded number at a time."""
    (floor,) = db.execute("SELECT floor FROM topics WHERE topic = ?", (topic,)).fetchone()
    (raised,) = db.execute(
        "SELECT ifnull(min(seq) FILTER (WHERE stored_at >= ?), max(seq) + 1) FROM "
        "(SELECT seq, stored_at FROM messages WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?)",
        (stored_before, floor, (topic + 1) << SHIFT, limit),
    ).fetchone()
    if raised is not None and raised > floor:
        db.execute("UPDATE topics SET floor = ? WHERE topic = ?", (raised, topic))
        collect(db, floor, raised - 1)
