"""The driver of sqlite:// URLs: one file as a broker, shared by the processes of one machine.

The broker itself is in engine/, where others have a program of their own. The driver's parts: settings.py (what the
URL says), claims.py, sender.py, leases.py and receiver.py, transactor.py, incoming.py (a row as a message).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from brokerkit_sqlite.claims import claims_of
from brokerkit_sqlite.engine import subscriptions as engine
from brokerkit_sqlite.engine.handing_out import Limits
from brokerkit_sqlite.engine.session import Session
from brokerkit_sqlite.leases import Leases
from brokerkit_sqlite.receiver import SqliteReceiver
from brokerkit_sqlite.sender import SqliteSender
from brokerkit_sqlite.settings import SqliteSettings, path_of
from brokerkit_sqlite.transactor import SqliteTransactor

_NATIVE = {"lease_seconds": 0.1, "retention_seconds": 0.0}
"""What `declare(native=…)` takes, with the least value of each."""


class SqliteDriver(Driver):
    blocking = True

    def __init__(self, url: Url, settings: SqliteSettings) -> None:
        self._path = path_of(url)
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
            engine.declare_topic(db, topic, retention, self._settings.retention_seconds)
            for subscription in subscriptions:
                lease = _native(subscription.native).get("lease_seconds")
                engine.declare_subscription(db, topic, subscription, lease, now_ms())

    def delete(self, topic: str, subscription: str | None) -> None:
        try:
            session = self._shared()
        except NotFound:
            return
        with session.transaction() as db:
            engine.delete(db, topic, subscription)

    def depth(self, topic: str, subscription: str) -> int:
        with self._shared().reading() as db:
            return engine.depth(db, topic, subscription)

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
        if native:
            raise ConfigurationError(f"a sqlite producer has no native settings, got {', '.join(map(repr, native))}")
        with self._opening(timeout) as session:
            return SqliteSender(session, self._settings, topic, subscription, guarantee, outcomes, events)

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
        counts = guarantee is not Guarantee.AT_MOST_ONCE
        with self._opening(timeout) as session:
            leases = Leases(session, self._settings.lease_seconds, topics, subscription, counts=counts)
            return SqliteReceiver(leases, settled, events, Limits(prefetch, prefetch_bytes))

    def transactor(
        self,
        topics: Sequence[str],
        subscription: Subscription,
        *,
        instance: str | None,
        timeout: float = 10.0,
    ) -> Transactor:
        with self._opening(timeout) as session:
            leases = Leases(session, self._settings.lease_seconds, topics, subscription, counts=True)
            return SqliteTransactor(leases, instance, self._settings.max_body_bytes)

    def close(self, timeout: float) -> None:
        self._closed = True
        with self._lock:
            if self._session is not None:
                self._session.close()

    def _open(self, timeout: float, *, create: bool = False) -> Session:
        if self._closed:
            raise Closed("this driver is closed")
        return Session(self._path, self._settings.pragmas, self._settings.busy_timeout, timeout, create=create)

    @contextmanager
    def _opening(self, timeout: float) -> Iterator[Session]:
        """A new session, closed again if what is made of it fails."""
        session = self._open(timeout)
        try:
            yield session
        except BaseException:
            session.close()
            raise

    def _shared(self, *, create: bool = False) -> Session:
        """The session of the driver's own calls, opened at the first."""
        with self._lock:
            if self._session is None:
                self._session = self._open(self._settings.busy_timeout, create=create)
            return self._session


def _native(native: Mapping[str, Any]) -> dict[str, float]:
    for name, value in native.items():
        if name not in _NATIVE:
            raise ConfigurationError(f"unknown native setting {name!r} for sqlite; known: {', '.join(_NATIVE)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= _NATIVE[name]:
            raise ConfigurationError(f"native setting {name!r} is a number of at least {_NATIVE[name]}, not {value!r}")
    return dict(native)
