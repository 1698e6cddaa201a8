"""The driver of sqlite:// URLs: one file as a broker, shared by the processes of one machine.

The driver's parts: settings.py (what the URL says), session.py (a connection), schema.py (the tables), log.py (what
is done to them), rows.py (messages as rows), sender.py, receiver.py, claims.py.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brokerkit.driver import (
    Capabilities,
    Driver,
    Outcomes,
    Receiver,
    ReceiverEvents,
    Sender,
    SenderEvents,
    Settled,
    Subscription,
    Transactor,
)
from brokerkit.errors import Closed, ConfigurationError, NotFound
from brokerkit.guarantees import Claims, Guarantee
from brokerkit.message import now_ms
from brokerkit.plugins import Url
from brokerkit_sqlite import log
from brokerkit_sqlite.claims import claims_of
from brokerkit_sqlite.receiver import SqliteReceiver, SqliteTransactor
from brokerkit_sqlite.sender import SqliteSender
from brokerkit_sqlite.session import Session
from brokerkit_sqlite.settings import SqliteSettings, path_of

_NATIVE = {"lease_seconds": 0.1, "retention_seconds": 0.0}
"""What `declare(native=…)` takes, with the least value of each."""


class SqliteDriver(Driver):
    blocking = True

    def __init__(self, url: Url, settings: SqliteSettings) -> None:
        self._path: Path = path_of(url)
        self._settings = settings
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._closed = False
        self.capabilities = Capabilities(
            producer_guarantees=frozenset(Guarantee),
            consumer_guarantees=frozenset({Guarantee.AT_MOST_ONCE, Guarantee.AT_LEAST_ONCE}),
            delayed_send=True,
            transactions=True,
            positions=True,
            max_body_bytes=settings.max_body_bytes,
        )

    def claims(self, producer: Guarantee, consumer: Guarantee) -> Claims:
        return claims_of(self._path, self._settings, producer, consumer)

    def declare(self, topic: str, subscriptions: Sequence[Subscription], native: Mapping[str, Any]) -> None:
        retention = _native(native).get("retention_seconds")
        with self._shared(create=True).transaction() as db:
            known = db.execute("SELECT retention FROM topics WHERE name = ?", (topic,)).fetchone()
            if known is not None and retention is not None and known[0] != round(retention * 1000):
                raise ConfigurationError(
                    f"topic {topic!r} is there with retention_seconds {known[0] / 1000}, not {retention}"
                )
            kept = self._settings.retention_seconds if retention is None else retention
            number = log.make_topic(db, topic, round(kept * 1000))
            for subscription in subscriptions:
                _declare(db, number, topic, subscription)

    def delete(self, topic: str, subscription: str | None) -> None:
        try:
            session = self._shared()
        except NotFound:
            return
        with session.transaction() as db:
            log.delete(db, topic, subscription)

    def depth(self, topic: str, subscription: str) -> int:
        session = self._shared()
        with session.lock:
            session.check()
            return log.depth(session.connection, topic, subscription)

    def describe(self) -> Mapping[str, str]:
        found = {
            "product": "SQLite",
            "version": sqlite3.sqlite_version,
            "file": self._path.name,
            "journal_mode": "wal",
            "synchronous": self._settings.synchronous,
            "lease_seconds": f"{self._settings.lease_seconds:g}",
            "busy_timeout": f"{self._settings.busy_timeout:g}",
        }
        return found | {f"client.{name}": value for name, value in self._settings.client.items()}

    def sender(
        self,
        topic: str,
        guarantee: Guarantee,
        outcomes: Outcomes,
        events: SenderEvents,
        *,
        subscription: str | None = None,
        native: Mapping[str, Any] | None = None,
        delivery_timeout: float = 30.0,
        timeout: float = 10.0,
    ) -> Sender:
        _no_native(native)
        session = self._open(timeout)
        try:
            return SqliteSender(session, self._settings, topic, subscription, guarantee, outcomes, events)
        except BaseException:
            session.close()
            raise

    def receiver(
        self,
        topics: Sequence[str],
        subscription: Subscription,
        guarantee: Guarantee,
        settled: Settled,
        events: ReceiverEvents,
        *,
        prefetch: int = 500,
        prefetch_bytes: int = 64 * 1024 * 1024,
        timeout: float = 10.0,
    ) -> Receiver:
        _native(subscription.native)
        session = self._open(timeout)
        try:
            return SqliteReceiver(
                session, self._settings, topics, subscription, guarantee, settled, events, prefetch, prefetch_bytes
            )
        except BaseException:
            session.close()
            raise

    def transactor(
        self,
        topics: Sequence[str],
        subscription: Subscription,
        *,
        instance: str | None,
        timeout: float = 10.0,
    ) -> Transactor:
        session = self._open(timeout)
        try:
            return SqliteTransactor(session, self._settings, topics, subscription, instance)
        except BaseException:
            session.close()
            raise

    def close(self, timeout: float) -> None:
        self._closed = True
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def _open(self, timeout: float, *, create: bool = False) -> Session:
        if self._closed:
            raise Closed("this driver is closed")
        return Session(self._path, self._settings, timeout, create=create)

    def _shared(self, *, create: bool = False) -> Session:
        """The session of the driver's own calls, opened at the first."""
        with self._lock:
            if self._session is None:
                self._session = self._open(self._settings.busy_timeout, create=create)
            return self._session


def _declare(db: sqlite3.Connection, topic: int, name: str, subscription: Subscription) -> None:
    if subscription.retry == "block":
        raise ConfigurationError(
            "retry='block' is not offered by sqlite, which delays a nacked message while the others go on: leave it out"
        )
    lease = _native(subscription.native).get("lease_seconds")
    wanted = {
        "attempts": subscription.attempts,
        "dead_letter": subscription.dead_letter,
        "handling_seconds": subscription.handling_seconds,
        "lease_seconds": lease,
    }
    if subscription.dead_letter is not None:
        log.make_dead_letters(db, subscription.dead_letter)
    elif subscription.attempts is not None:
        log.make_dead_letters(db, f"{name}-dead")
    known = db.execute(
        f"SELECT {', '.join(wanted)} FROM subscriptions WHERE topic = ? AND name = ?", (topic, subscription.name)
    ).fetchone()
    if known is None:
        log.make_subscription(db, topic, subscription.name, subscription.start, wanted, now_ms())
        return
    for (setting, value), there in zip(wanted.items(), known, strict=True):
        if value is not None and value != there:
            raise ConfigurationError(
                f"subscription {subscription.name!r} of topic {name!r} is there with {setting} {there}, not {value}: "
                "delete it first, or declare it as it is"
            )


def _native(native: Mapping[str, Any]) -> dict[str, float]:
    for name, value in native.items():
        if name not in _NATIVE:
            raise ConfigurationError(f"unknown native setting {name!r} for sqlite; known: {', '.join(_NATIVE)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= _NATIVE[name]:
            raise ConfigurationError(f"native setting {name!r} is a number of at least {_NATIVE[name]}, not {value!r}")
    return dict(native)


def _no_native(native: Mapping[str, Any] | None) -> None:
    if native:
        raise ConfigurationError(f"a sqlite producer has no native settings, got {', '.join(map(repr, native))}")
