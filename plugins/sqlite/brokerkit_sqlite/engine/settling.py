"""Settling what was handed out, and dead letters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from sqlite3 import Connection, Cursor
from typing import NamedTuple

from brokerkit.driver import Nack, Reject
from brokerkit_sqlite.engine.rows import decode_headers, encode_headers, position_of
from brokerkit_sqlite.engine.storing import collect
from brokerkit_sqlite.engine.subscriptions import Group, make_dead_letters

Token = tuple[int, int, int]
"""One delivery: subscription, seq, lease."""


def settle(
    db: Connection,
    groups: Mapping[int, Group],
    acks: Sequence[Token],
    nacks: Iterable[Nack],
    rejects: Iterable[Reject],
    now: int,
) -> set[Token]:
    """All of it; returns the tokens whose lease was no longer theirs."""
    return _ack(db, acks) | _nack(db, groups, nacks, now) | _reject(db, groups, rejects, now)


def extend(db: Connection, tokens: Sequence[Token], until: int) -> set[Token]:
    """Moves the ends of leases; returns those that were over."""
    lost: set[Token] = set()
    for run in _runs(tokens):
        lost |= run.without(
            db.execute(
                "UPDATE deliveries SET due = ? "
                "WHERE subscription = ? AND seq BETWEEN ? AND ? AND lease = ? RETURNING seq",
                (until, *run),
            )
        )
    for subscription in {token[0] for token in tokens}:
        db.execute("UPDATE subscriptions SET expiry = min(expiry, ?) WHERE subscription = ?", (until, subscription))
    return lost


def bury(db: Connection, group: Group, seq: int, attempt: int, reason: str, now: int) -> None:
    """Moves a message to the end of the dead-letter topic, which is made anew if somebody deleted it."""
    stored = db.execute("SELECT CAST(headers AS BLOB) FROM messages WHERE seq = ?", (seq,)).fetchone()
    if stored is not None:
        make_dead_letters(db, group.dead_letter)
        headers = {**decode_headers(*stored), "brokerkit-dead-reason": reason, "brokerkit-attempt": str(attempt)}
        db.execute("UPDATE topics SET last = last + 1 WHERE name = ?", (group.dead_letter,))
        db.execute(
            "INSERT INTO messages SELECT last, ifnull(nullif(id, ''), ?), key, content_type, published_at, ?, NULL, "
            "?, body FROM messages JOIN topics ON name = ? WHERE seq = ?",
            (str(position_of(group.topic, seq)), now, encode_headers(headers), group.dead_letter, seq),
        )
    forget(db, group.subscription, seq)


def forget(db: Connection, subscription: int, seq: int) -> None:
    """Settles one message for good."""
    db.execute("DELETE FROM deliveries WHERE subscription = ? AND seq = ?", (subscription, seq))
    collect(db, seq, seq)


class _Run(NamedTuple):
    """Deliveries of one lease that lie side by side."""

    subscription: int
    first: int
    last: int
    lease: int

    def without(self, done: Cursor) -> set[Token]:
        """The tokens of those that a statement did not return."""
        found = done.fetchall()
        if len(found) > self.last - self.first:
            return set()
        gone = set(range(self.first, self.last + 1)).difference(seq for (seq,) in found)
        return {(self.subscription, seq, self.lease) for seq in gone}


def _runs(tokens: Iterable[Token]) -> Iterator[_Run]:
    # Within a run, the seq and the place in the list grow alike.
    for (subscription, lease, _), run in groupby(
        enumerate(sorted(tokens)), lambda item: (item[1][0], item[1][2], item[1][1] - item[0])
    ):
        seqs = [token[1] for _, token in run]
        yield _Run(subscription, seqs[0], seqs[-1], lease)


def _ack(db: Connection, tokens: Sequence[Token]) -> set[Token]:
    lost: set[Token] = set()
    for run in _runs(tokens):
        lost |= run.without(
            db.execute(
                "DELETE FROM deliveries WHERE subscription = ? AND seq BETWEEN ? AND ? AND lease = ? RETURNING seq",
                run,
            )
        )
        collect(db, run.first, run.last)
    return lost


def _nack(db: Connection, groups: Mapping[int, Group], nacks: Iterable[Nack], now: int) -> set[Token]:
    """Lets messages wait again, or dead-letters them at their last attempt."""
    lost: set[Token] = set()
    for token, delay, unstarted in nacks:
        row = db.execute(
            "UPDATE deliveries SET lease = NULL, due = ?, attempt = max(0, attempt - ?) "
            "WHERE subscription = ? AND seq = ? AND lease = ? RETURNING attempt",
            (now + round(delay * 1000), unstarted, *token),
        ).fetchone()
        group = groups[token[0]]
        if row is None:
            lost.add(token)
        elif group.attempts is not None and row[0] >= group.attempts and not unstarted:
            bury(db, group, token[1], row[0], f"given back {row[0]} times", now)
    return lost


def _reject(db: Connection, groups: Mapping[int, Group], rejects: Iterable[Reject], now: int) -> set[Token]:
    lost: set[Token] = set()
    for token, reason in rejects:
        row = db.execute(
            "SELECT attempt FROM deliveries WHERE subscription = ? AND seq = ? AND lease = ?", token
        ).fetchone()
        if row is None:
            lost.add(token)
        else:
            bury(db, groups[token[0]], token[1], row[0], reason, now)
    return lost
