"""SQLite, by the standard library."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qsl, quote, unquote

from brokerkit.errors import ConfigurationError, ConnectionLost, NotFound
from brokerkit.once.stores.contract import (
    SHARDS,
    Durability,
    Lag,
    Row,
    Store,
    Waiting,
    causes,
    ended_by_others,
    not_yours,
    shown,
)

_TABLES = """\
create table if not exists brokerkit_version (part text primary key, version integer not null) without rowid;
create table if not exists brokerkit_inbox (
    consumer text not null,
    message_id text not null,
    seen_at integer not null default (cast(strftime('%s', 'now') as integer)),
    primary key (consumer, message_id)
) without rowid;
create index if not exists brokerkit_inbox_seen_at on brokerkit_inbox (seen_at);
insert into brokerkit_version values ('inbox', 1) on conflict (part) do update set version = excluded.version;
"""
_KEYS = """\
create table if not exists brokerkit_keys (
    name text not null,
    key text not null,
    fingerprint blob not null,
    state text not null,
    owner text not null,
    attempts integer not null,
    lease_until integer not null,
    keep_until integer not null,
    first_at integer not null,
    request blob,
    result blob,
    primary key (name, key)
);
create index if not exists brokerkit_keys_keep_until on brokerkit_keys (keep_until);
update brokerkit_version set version = 2 where part = 'inbox';
"""
_NOW = "cast(round((julianday('now') - 2440587.5) * 86400000) as integer)"
# An id that is used again would be deleted by a relay that is late: autoincrement never uses one again.
_OUTBOX = """\
create table if not exists brokerkit_outbox (
    id integer primary key autoincrement,
    outbox text not null,
    shard integer not null,
    topic text not null,
    message_id text not null,
    key text,
    headers text,
    content_type text,
    published_at integer not null,
    body blob,
    written_at real not null default ((julianday('now') - 2440587.5) * 86400.0),
    refused text
);
create index if not exists brokerkit_outbox_refused on brokerkit_outbox (outbox, topic, key) where refused is not null;
create table if not exists brokerkit_relay (
    outbox text not null,
    shard integer not null,
    owner text not null,
    until real not null,
    primary key (outbox, shard)
) without rowid;
update brokerkit_version set version = 3 where part = 'inbox';
"""
_CHECKPOINTS = """\
create table if not exists brokerkit_checkpoints (
    consumer text not null,
    lane text not null,
    topic_id text not null,
    place integer not null,
    primary key (consumer, lane)
) without rowid;
update brokerkit_version set version = 4 where part = 'inbox';
"""
_FRESH = """\
insert into brokerkit_inbox (consumer, message_id) select ?, value from json_each(?) where true
on conflict do nothing returning message_id"""
_PRUNE = """\
delete from brokerkit_inbox where (consumer, message_id) in (
    select consumer, message_id from brokerkit_inbox where seen_at < cast(strftime('%s', 'now') as integer) - ?
    order by seen_at limit ?
)"""
_WRITE = """\
insert into brokerkit_outbox (outbox, shard, topic, message_id, key, headers, content_type, published_at, body)
values (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_WAITING = """\
select id, topic, message_id, key, headers, content_type, published_at, body from (
    select *, sum(coalesce(length(body), 0)) over (order by id) - coalesce(length(body), 0) as before from (
        select * from brokerkit_outbox as o
        where outbox = ? and refused is null and id not in (select value from json_each(?))
            and topic not in (select value from json_each(?)) and (? or shard in (select value from json_each(?)))
            and (key is null or not exists (
                select 1 from brokerkit_outbox as r where r.outbox = o.outbox and r.topic = o.topic and r.key = o.key
                    and r.refused is not null and r.id < o.id))
        order by id limit ?
    )
) where before < ? order by id"""
_LAG = """\
select count(*) filter (where refused is null),
    (julianday('now') - 2440587.5) * 86400.0 - min(written_at) filter (where refused is null),
    count(*) filter (where refused is not null)
from brokerkit_outbox where outbox = ?"""
_HOLD = """\
insert into brokerkit_relay (outbox, shard, owner, until) select ?, value, ?, ? from json_each(?) where true
on conflict (outbox, shard) do update set owner = excluded.owner, until = excluded.until
where owner = excluded.owner or until < ?"""
_LOOK = 0.02
"""Seconds between two looks for what another process has written."""
_LEVELS = ("off", "normal", "full", "extra")


class _Connection(sqlite3.Connection):
    broken = False
    seen = 0
    """The file's `data_version` when somebody looked into the outbox."""

    def commit(self) -> NoReturn:
        raise not_yours()

    def rollback(self) -> NoReturn:
        raise not_yours()


class Sqlite(Store):
    product = "SQLite"
    schemes = ("sqlite",)
    scripts = (_TABLES, _KEYS, _OUTBOX, _CHECKPOINTS)

    def connect(self, url: str, *, create: bool = False) -> _Connection:
        path, options = _parsed(url)
        if not path.parent.is_dir():
            raise ConfigurationError(f"{shown(url)} lies in a directory that does not exist: create it")
        if not create and not path.exists():
            raise NotFound(f"there is no file {path.name!r}: run `brokerkit once init {shown(url)}`, which creates it")
        new = not path.exists()
        try:
            connection = sqlite3.connect(
                f"file:{quote(str(path))}?mode={'rwc' if create else 'rw'}",
                uri=True,
                timeout=float(options.get("busy_timeout", "10")),
                isolation_level=None,  # BEGIN and COMMIT are sent here and nowhere else
                check_same_thread=False,
                factory=_Connection,
            )
            if "synchronous" in options:
                connection.execute(f"pragma synchronous = {options['synchronous']}")
            if new:
                connection.execute("pragma journal_mode = wal")
            connection.execute("select count(*) from sqlite_master").fetchone()
        except sqlite3.DatabaseError as error:
            kind = ConfigurationError if error.sqlite_errorcode & 0xFF in _FOR_THE_USER else ConnectionLost
            raise kind(f"the store {shown(url)} cannot be opened: {error}") from None
        return connection

    def begin(self, connection: Any) -> None:
        connection.execute("begin immediate")  # a reader that becomes a writer later may find that it cannot

    def commit(self, connection: Any) -> None:
        if not connection.in_transaction:
            raise ended_by_others()
        try:
            connection.execute("commit")
        except sqlite3.Error as error:
            connection.broken = not self.conflict(error)
            raise

    def rollback(self, connection: Any) -> None:
        if connection.in_transaction:
            try:
                connection.execute("rollback")
            except sqlite3.Error:
                connection.broken = True

    def close(self, connection: Any) -> None:
        connection.close()

    def failed(self, connection: Any) -> bool:
        return not connection.in_transaction

    def lost(self, connection: Any) -> bool:
        return bool(getattr(connection, "broken", False))

    def conflict(self, error: BaseException) -> bool:
        codes = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        return any(
            isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", 0) & 0xFF in codes
            for cause in causes(error)
        )

    def missing_table(self, error: BaseException) -> bool:
        return any(
            isinstance(cause, sqlite3.OperationalError) and "no such table: brokerkit_" in str(cause)
            for cause in causes(error)
        )

    def own(self, error: BaseException) -> bool:
        return isinstance(error, sqlite3.Error)

    def owns(self, connection: Any) -> bool:
        return isinstance(connection, sqlite3.Connection)

    def in_transaction(self, connection: Any) -> bool:
        return bool(connection.in_transaction or connection.isolation_level is not None)

    def execute(self, connection: Any, sql: str) -> None:
        for statement in _statements(sql):
            connection.execute(statement)

    def run(self, connection: Any, sql: str, values: Mapping[str, Any]) -> Any:
        return connection.execute(sql.replace("{now}", _NOW), values)

    def bound(self, connection: Any, seconds: float) -> None:
        connection.execute(f"pragma busy_timeout = {int(seconds * 1000)}")

    def version(self, connection: Any) -> int:
        there = "select count(*) from sqlite_master where name = 'brokerkit_version'"
        if not connection.execute(there).fetchone()[0]:
            return 0
        row = connection.execute("select version from brokerkit_version where part = 'inbox'").fetchone()
        return int(row[0]) if row else 0

    def durability(self, connection: Any) -> Durability:
        level = _LEVELS[connection.execute("pragma synchronous").fetchone()[0]]
        mode = str(connection.execute("pragma journal_mode").fetchone()[0])
        settings = {"synchronous": level, "journal_mode": mode}
        if mode in ("memory", "off"):
            return Durability("nothing", settings, f"journal_mode is {mode}: a killed process ruins the file")
        if level == "off" or (level == "normal" and mode == "wal"):
            return Durability(
                "process_kill", settings, f"synchronous is {level}, so that a power cut may take commits along"
            )
        return Durability("power_loss", settings)

    def fresh(self, connection: Any, consumer: str, ids: Sequence[str]) -> set[str]:
        return {row[0] for row in connection.execute(_FRESH, (consumer, json.dumps(ids))).fetchall()}

    def prune(self, connection: Any, seconds: float, most: int) -> int:
        return int(connection.execute(_PRUNE, (seconds, most)).rowcount)

    def write(self, connection: Any, outbox: str, rows: Sequence[Row]) -> None:
        connection.executemany(_WRITE, [(outbox, *row) for row in rows])

    def lag(self, connection: Any, outbox: str) -> Lag:
        rows, seconds, refused = connection.execute(_LAG, (outbox,)).fetchone()
        return Lag(rows, max(0.0, seconds or 0.0), refused)

    def release(self, connection: Any, outbox: str, *, drop: bool) -> int:
        verb = "delete from brokerkit_outbox" if drop else "update brokerkit_outbox set refused = null"
        return int(connection.execute(f"{verb} where outbox = ? and refused is not null", (outbox,)).rowcount)

    def prepare(self, connection: Any) -> None:
        connection.execute("pragma synchronous = normal")

    def hold(self, connection: Any, outbox: str, shards: Sequence[int], owner: str, seconds: float) -> bool:
        now = time.time()
        self.begin(connection)
        done = connection.execute(_HOLD, (outbox, owner, now + seconds, json.dumps(list(shards)), now)).rowcount
        if done == len(shards):
            self.commit(connection)
            return True
        self.rollback(connection)
        return False

    def let_go(self, connection: Any, outbox: str, owner: str) -> None:
        connection.execute("delete from brokerkit_relay where outbox = ? and owner = ?", (outbox, owner))

    def waiting(
        self,
        connection: Any,
        outbox: str,
        shards: Sequence[int],
        *,
        flying: Sequence[int],
        without: Sequence[str],
        most: int,
        most_bytes: int,
    ) -> Sequence[Waiting]:
        lists = [json.dumps(list(each)) for each in (flying, without, shards)]
        parameters = (outbox, *lists[:2], len(shards) == SHARDS, lists[2], most, most_bytes)
        connection.seen = _data_version(connection)
        rows: list[Waiting] = connection.execute(_WAITING, parameters).fetchall()
        return rows

    def delete(self, connection: Any, ids: Sequence[int]) -> None:
        connection.execute(
            "delete from brokerkit_outbox where id in (select value from json_each(?))", (json.dumps(list(ids)),)
        )

    def refuse(self, connection: Any, id: int, reason: str) -> None:
        connection.execute("update brokerkit_outbox set refused = ? where id = ?", (reason, id))

    def wait(self, connection: Any, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and _data_version(connection) == connection.seen:
            time.sleep(min(left, _LOOK))


def _data_version(connection: sqlite3.Connection) -> int:
    """Another number once another connection has committed."""
    return int(connection.execute("pragma data_version").fetchone()[0])


_FOR_THE_USER = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


def _parsed(url: str) -> tuple[Path, Mapping[str, str]]:
    """`sqlite:///relative.db` or `sqlite:////absolute.db`, with `synchronous` and `busy_timeout`."""
    place, _, query = url.partition("://")[2].partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = options.keys() - {"synchronous", "busy_timeout"}
    if unknown:
        raise ConfigurationError(
            f"unknown option {', '.join(sorted(unknown))} for a SQLite store; known: busy_timeout, synchronous"
        )
    if options.get("synchronous", "full") not in _LEVELS:
        raise ConfigurationError(f"synchronous is one of {', '.join(_LEVELS)}, not {options['synchronous']!r}")
    if not options.get("busy_timeout", "10").replace(".", "", 1).isdigit():
        raise ConfigurationError(f"busy_timeout is a number of seconds, not {options['busy_timeout']!r}")
    host, _, path = place.partition("/")
    if host or not path or path == ":memory:":
        raise ConfigurationError("a SQLite store is a file: sqlite:///relative.db or sqlite:////absolute/path.db")
    return Path(unquote(path)), options


def _statements(sql: str) -> list[str]:
    """One by one: `executescript` would commit what is open."""
    found, part = [], ""
    for line in sql.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            found.append(part)
            part = ""
    return [*found, part] if part.strip() else found


STORE = Sqlite()
