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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from brokerkit.errors import BrokerkitError, Closed, ConfigurationError, ConnectionLost, NotFound
from brokerkit_sqlite.engine import schema

_PATIENCE = 0.005
_open: weakref.WeakSet[Session] = weakref.WeakSet()


class CommitUnknown(ConnectionLost):
    """COMMIT failed in a way that leaves open whether it happened."""


class Locked(ConnectionLost):
    """Another process kept the file locked; nothing happened."""


class DiskFull(ConnectionLost):
    """Nothing happened; there may be room later."""


class Session:
    """A connection and its lock, which `reading` and `transaction` take."""

    def __init__(
        self, path: Path, pragmas: Mapping[str, str], busy_timeout: float, timeout: float, *, create: bool = False
    ) -> None:
        """Raises NotFound when the file is missing and is not to be created, ConfigurationError, ConnectionLost."""
        schema.check_version()
        self.path = path
        self.closed = False
        self.busy_timeout = busy_timeout
        self._lock = threading.RLock()
        self._pid = os.getpid()
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
        _open.add(self)
        try:
            self._prepare(pragmas, time.monotonic() + timeout)
        except BaseException:
            self.close()
            raise

    def _prepare(self, pragmas: Mapping[str, str], deadline: float) -> None:
        def execute(statement: str) -> sqlite3.Cursor:
            return self._patiently(statement, deadline)

        for name, value in pragmas.items():
            execute(f"PRAGMA {name}={value}")
        ours = schema.is_ours(execute)
        (mode,) = execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise ConfigurationError(
                f"{self.path.name!r} cannot use a write-ahead log (journal mode {mode}): put it on a local disk"
            )
        if not ours:
            with self.transaction(deadline) as db:
                if not schema.is_ours(db.execute):
                    schema.create(db)

    def check(self) -> None:
        if self.closed:
            raise Closed("this session is closed")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for single statements. SQLite's errors become what `explain` makes of them."""
        self.check()  # before the lock too: in a forked child, nobody may be left who releases it
        with self._lock:
            self.check()
            try:
                yield self.connection
            except sqlite3.Error as error:
                raise explain(error, self.path) from error

    @contextmanager
    def transaction(self, deadline: float | None = None) -> Iterator[sqlite3.Connection]:
        """BEGIN IMMEDIATE … COMMIT; rolled back when the block raises.

        Raises Locked when the file stays locked until `deadline`; CommitUnknown when COMMIT itself failed in a way
        that leaves open whether it happened.
        """
        with self.reading() as db:
            self._patiently("BEGIN IMMEDIATE", deadline or time.monotonic() + self.busy_timeout)
            try:
                yield db
            except BaseException:
                self._rollback()
                raise
            self._commit()

    def close(self) -> None:
        """Idempotent. `closed` may be set before, to end waits. In a child process nothing is done."""
        self.closed = True
        if os.getpid() == self._pid:
            with self._lock:
                _open.discard(self)
                self.connection.close()

    def _patiently(self, statement: str, deadline: float) -> sqlite3.Cursor:
        """Executes it, again and again until the deadline while another process keeps the file locked."""
        while True:
            try:
                return self.connection.execute(statement)
            except sqlite3.Error as error:
                explained = explain(error, self.path)
            if not isinstance(explained, Locked) or time.monotonic() >= deadline:
                raise explained
            if self.closed:
                raise Closed("closed while it waited for the file")
            time.sleep(0.0005)

    def _commit(self) -> None:
        try:
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._rollback()
            explained = explain(error, self.path)
            if isinstance(explained, DiskFull):
                raise explained from None
            raise CommitUnknown(f"COMMIT failed, it may have happened: {error}") from None

    def _rollback(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")


_Meaning = tuple[type[BrokerkitError], str]
_LOCKED: _Meaning = (Locked, "another process kept {name} locked for too long: see busy_timeout")
_FORBIDDEN: _Meaning = (
    ConfigurationError,
    "{name} or its directory cannot be written: check permissions and owner",
)
_MEANINGS: Mapping[int, _Meaning] = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_PROTOCOL: _LOCKED,
    sqlite3.SQLITE_READONLY: _FORBIDDEN,
    sqlite3.SQLITE_PERM: _FORBIDDEN,
    sqlite3.SQLITE_AUTH: _FORBIDDEN,
    sqlite3.SQLITE_FULL: (DiskFull, "the disk of {name} is full"),
    sqlite3.SQLITE_NOTADB: (ConfigurationError, "{name} is not a SQLite database: name another file"),
    sqlite3.SQLITE_CORRUPT: (
        ConfigurationError,
        "{name} is damaged: restore it, or recover it with SQLite's own tools",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        ConfigurationError,
        "{name} cannot be opened: it is a directory, or may not be read or created",
    ),
}


def explain(error: sqlite3.Error, path: Path) -> BrokerkitError:
    """brokerkit's error for SQLite's: what was wrong and what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_CANTOPEN and not path.parent.is_dir():
        return ConfigurationError(f"{path.name!r} cannot be opened: its directory does not exist")
    kind, text = _MEANINGS.get(code, (ConnectionLost, "{name}: {error}"))
    return kind(text.format(name=repr(path.name), error=error))


def _keep_after_fork() -> None:
    # A child must never close or roll back what it inherited: both write to memory that it shares with its parent.
    for session in list(_open):
        session.closed = True
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session.connection))


os.register_at_fork(after_in_child=_keep_after_fork)
