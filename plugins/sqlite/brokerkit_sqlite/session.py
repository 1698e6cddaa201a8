"""One connection to the file: opened with checks, locked for threads, patient with other processes.

SQLite's own busy handler backs off up to 100 ms at a time, which starves one process beside a busy other; here it
is kept to a few milliseconds and BEGIN IMMEDIATE is tried again until a deadline. Within such a transaction no
other statement can find the file locked.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from brokerkit.errors import BrokerkitError, Closed, ConfigurationError, ConnectionLost, NotFound
from brokerkit_sqlite import schema
from brokerkit_sqlite.settings import SqliteSettings

T = TypeVar("T")

_PATIENCE = 0.005
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_open: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """A connection and its lock. Every use holds `lock`; `transaction` takes it."""

    def __init__(self, path: Path, settings: SqliteSettings, timeout: float, *, create: bool = False) -> None:
        """Raises NotFound when the file is missing and is not to be created, ConfigurationError, ConnectionLost."""
        schema.check_version()
        self.path = path
        self.lock = threading.RLock()
        self.closed = False
        self._pid = os.getpid()
        self._busy_timeout = settings.busy_timeout
        if not create and path.parent.is_dir() and not path.exists():
            raise NotFound(f"there is no file {path.name!r}: declare a topic first, which creates it")
        try:
            self.connection = sqlite3.connect(
                f"file:{quote(str(path))}?mode={'rwc' if create else 'rw'}",
                uri=True,
                timeout=_PATIENCE,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise explain(error, path) from None
        self.execute = self.connection.execute
        _open.add(self)
        try:
            self._prepare(settings, time.monotonic() + timeout)
        except BaseException:
            self.close()
            raise

    def _prepare(self, settings: SqliteSettings, deadline: float) -> None:
        for name, value in {"cache_size": "-16384", **settings.client}.items():
            self.patiently(lambda n=name, v=value: self.execute(f"PRAGMA {n}={v}"), deadline)  # type: ignore[misc]
        ours = self.patiently(lambda: schema.is_ours(self.connection), deadline)
        (mode,) = self.patiently(lambda: self.execute("PRAGMA journal_mode=WAL").fetchone(), deadline)
        if mode != "wal":
            raise ConfigurationError(
                f"{self.path.name!r} cannot use a write-ahead log (journal mode {mode}): put it on a local disk"
            )
        self.execute(f"PRAGMA synchronous={settings.synchronous}")
        if not ours:
            with self.transaction(deadline):
                if not schema.is_ours(self.connection):
                    schema.create(self.connection)

    def patiently(self, action: Callable[[], T], deadline: float) -> T:
        """`action()`, tried again until the deadline while another process keeps the file locked."""
        while True:
            try:
                return action()
            except sqlite3.Error as error:
                if not is_busy(error) or time.monotonic() >= deadline:
                    raise explain(error, self.path) from None
            if self.closed:
                raise Closed("closed while it waited for the file")
            time.sleep(0.0005)

    @contextmanager
    def transaction(self, deadline: float | None = None) -> Iterator[sqlite3.Connection]:
        """BEGIN IMMEDIATE … COMMIT under the lock; rolled back when the block raises.

        Raises what `explain` makes of SQLite's errors; CommitUnknown when COMMIT itself failed in a way that leaves
        open whether it happened.
        """
        if deadline is None:
            deadline = time.monotonic() + self._busy_timeout
        self.check()
        with self.lock:
            self.check()
            self.patiently(self._begin, deadline)
            try:
                yield self.connection
            except BaseException as error:
                self._rollback()
                if isinstance(error, sqlite3.Error):
                    raise explain(error, self.path) from error
                raise
            self._commit()

    def check(self) -> None:
        if self.closed:
            raise Closed("this session is closed")

    def data_version(self) -> int:
        """Changes whenever another connection has committed."""
        version: int = self.execute("PRAGMA data_version").fetchone()[0]
        return version

    def close(self) -> None:
        """Idempotent. `closed` may be set before, to end waits. In a child process nothing is done."""
        self.closed = True
        if os.getpid() == self._pid:
            with self.lock:
                _open.discard(self)
                self.connection.close()

    def _begin(self) -> Any:
        return self.execute("BEGIN IMMEDIATE")

    def _commit(self) -> None:
        try:
            self.execute("COMMIT")
        except sqlite3.Error as error:
            self._rollback()
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
                raise explain(error, self.path) from None
            raise CommitUnknown(f"COMMIT failed, it may have happened: {error}") from None

    def _rollback(self) -> None:
        if self.connection.in_transaction:
            try:
                self.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise ConnectionLost(f"{self.path.name!r}: ROLLBACK failed: {error}") from None


class CommitUnknown(ConnectionLost):
    """COMMIT failed in a way that leaves open whether it happened."""


class Locked(ConnectionLost):
    """Another process kept the file locked; nothing happened."""


class DiskFull(ConnectionLost):
    """Nothing happened; there may be room later."""


def is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY


def explain(error: sqlite3.Error, path: Path) -> BrokerkitError:
    """brokerkit's error for SQLite's: what was wrong and what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    name = repr(path.name)
    if code in _BUSY:
        return Locked(f"another process kept {name} locked for too long: see busy_timeout")
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(f"the disk of {name} is full")
    if code == sqlite3.SQLITE_NOTADB:
        return ConfigurationError(f"{name} is not a SQLite database: name another file")
    if code == sqlite3.SQLITE_CORRUPT:
        return ConfigurationError(f"{name} is damaged: restore it, or recover it with SQLite's own tools")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return ConfigurationError(f"{name} or its directory cannot be written: check permissions and owner")
    if code == sqlite3.SQLITE_CANTOPEN:
        if not path.parent.is_dir():
            return ConfigurationError(f"{name} cannot be opened: its directory does not exist")
        return ConfigurationError(f"{name} cannot be opened: it is a directory, or may not be read or created")
    return ConnectionLost(f"{name}: {error}")


def _keep_after_fork() -> None:
    # A child must never close or roll back what it inherited: both write to memory that it shares with its parent.
    for session in list(_open):
        session.closed = True
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session.connection))


os.register_at_fork(after_in_child=_keep_after_fork)
