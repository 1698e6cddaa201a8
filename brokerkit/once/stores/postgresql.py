"""PostgreSQL, by psycopg 3."""

from __future__ import annotations

import re
import secrets
import selectors
from collections.abc import Generator, Mapping, Sequence
from functools import cache
from typing import Any, NoReturn

from brokerkit.errors import AccessRefused, BrokerkitError, ConfigurationError, ConnectionLost
from brokerkit.once.stores.contract import (
    SHARDS,
    Durability,
    Lag,
    Row,
    Store,
    SwallowedError,
    Waiting,
    causes,
    ended_by_others,
    not_yours,
    one_line,
    shown,
)

try:
    import psycopg
    from psycopg.pq import DiagnosticField, ExecStatus, TransactionStatus
    from psycopg.waiting import Ready, Wait
except ImportError:  # the first use says so
    raise ConfigurationError(
        "PostgreSQL as a store needs psycopg, which is not installed: pip install 'brokerkit-mq[postgresql]'"
    ) from None

_TABLES = """\
select pg_advisory_xact_lock(hashtext('brokerkit tables'));
create table if not exists brokerkit_version (part text primary key, version integer not null);
create table if not exists brokerkit_inbox (
    consumer text collate "C" not null,
    message_id text collate "C" not null,
    seen_at timestamptz not null default now(),
    primary key (consumer, message_id)
);
create index if not exists brokerkit_inbox_seen_at on brokerkit_inbox (seen_at);
insert into brokerkit_version values ('inbox', 1) on conflict (part) do update set version = excluded.version;
"""
_KEYS = """\
select pg_advisory_xact_lock(hashtext('brokerkit tables'));
create table if not exists brokerkit_keys (
    name text collate "C" not null,
    key text collate "C" not null,
    fingerprint bytea not null,
    state text not null,
    owner text not null,
    attempts integer not null,
    lease_until bigint not null,
    keep_until bigint not null,
    first_at bigint not null,
    request bytea,
    result bytea,
    primary key (name, key)
);
create index if not exists brokerkit_keys_keep_until on brokerkit_keys (keep_until);
update brokerkit_version set version = 2 where part = 'inbox';
"""
_NOW = "(extract(epoch from clock_timestamp()) * 1000)::bigint"
_OUTBOX = """\
select pg_advisory_xact_lock(hashtext('brokerkit tables'));
create table if not exists brokerkit_outbox (
    id bigint generated always as identity primary key,
    outbox text collate "C" not null,
    shard smallint not null,
    topic text collate "C" not null,
    message_id text not null,
    key text collate "C",
    headers text,
    content_type text,
    published_at bigint not null,
    body bytea,
    written_at timestamptz not null default clock_timestamp(),
    refused text
);
create index if not exists brokerkit_outbox_refused on brokerkit_outbox (outbox, topic, key) where refused is not null;
update brokerkit_version set version = 3 where part = 'inbox';
"""
_CHECKPOINTS = """\
select pg_advisory_xact_lock(hashtext('brokerkit tables'));
create table if not exists brokerkit_checkpoints (
    consumer text collate "C" not null,
    lane text collate "C" not null,
    topic_id text collate "C" not null,
    place bigint not null,
    primary key (consumer, lane)
);
update brokerkit_version set version = 4 where part = 'inbox';
"""
# Sorted by the caller and inserted in that order: two batches that overlap wait for each other, and do not deadlock.
_BATCH = """\
insert into brokerkit_inbox (consumer, message_id) select %s, id from unnest(%s::text[]) as id
on conflict do nothing returning message_id"""
_ONE = "insert into brokerkit_inbox (consumer, message_id) values (:consumer, :id) on conflict do nothing"
_PRUNE = """\
delete from brokerkit_inbox where (consumer, message_id) in (
    select consumer, message_id from brokerkit_inbox where seen_at < now() - make_interval(secs => %s)
    order by seen_at limit %s
)"""
_SETTINGS = """\
select current_setting('fsync'), current_setting('synchronous_commit'), current_setting('full_page_writes'),
    (select min(relname) from pg_class where relpersistence = 'u'
        and oid in (to_regclass('brokerkit_inbox'), to_regclass('brokerkit_keys')))"""

_WRITE = """\
insert into brokerkit_outbox (outbox, shard, topic, message_id, key, headers, content_type, published_at, body)
select %s, shard, topic, message_id, key, headers, content_type, published_at, body
from unnest(%s::smallint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::bytea[])
    with ordinality as t (shard, topic, message_id, key, headers, content_type, published_at, body, number)
order by number"""
# Nothing refused, as mostly, is seen once a look and not once a row.
_WAITING = """\
select id, topic, message_id, key, headers, content_type, published_at, body from (
    select *, sum(octet_length(body)) over (order by id rows between unbounded preceding and 1 preceding) as before
    from (
        select id, topic, message_id, key, headers, content_type, published_at, body from brokerkit_outbox as o
        where outbox = %s and refused is null and not id <@ %s::int8multirange and topic <> all(%s::text[])
            and (%s or shard = any(%s::smallint[]))
            and (key is null
                or not (select exists (select from brokerkit_outbox where outbox = %s and refused is not null))
                or not exists (
                    select from brokerkit_outbox as r where r.outbox = o.outbox and r.topic = o.topic and r.key = o.key
                        and r.refused is not null and r.id < o.id))
        order by id limit %s
    ) as first
) as counted where coalesce(before, 0) < %s order by id"""
_DELETE = "delete from brokerkit_outbox where id = any(%b::bigint[])"
_DELETE_RANGE = "delete from brokerkit_outbox where id between %s::bigint and %s::bigint"
_LAG = """\
select count(*) filter (where refused is null),
    extract(epoch from clock_timestamp() - min(written_at) filter (where refused is null)),
    count(*) filter (where refused is not null)
from brokerkit_outbox where outbox = %s"""
# A client whose machine is gone keeps its locks until the server has noticed, by default after two hours.
_NOTICE_US = """\
select set_config(name, value, false) from pg_settings join (
    values ('tcp_keepalives_idle', '10'), ('tcp_keepalives_interval', '5'), ('tcp_keepalives_count', '3')
) as ours (name, value) using (name) where source = 'default'"""
_HELD = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
_HOLD = """\
select pg_try_advisory_lock(hashtext('brokerkit_outbox'::regclass::oid::text || ' ' || %s), shard)
from unnest(%s::int[]) as shard"""
_CHANNEL = "brokerkit_outbox"
_PARAMETER = re.compile(r"(?<!:):(\w+)")

_CONFLICTS = ("40001", "40P01", "55P03")
_REFUSED = ("authentication failed", "no password supplied", "no pg_hba.conf entry", 'role "', "permission denied")
"""libpq gives no code for a connection that fails."""


class _Connection(psycopg.Connection[Any]):
    news = False
    """Whether a notification came since somebody looked into the outbox; psycopg would keep every one of them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.prepared: dict[bytes, bytes] = {}
        """By what names the server knows the statements with which transactions begin."""

    def heard(self, _: psycopg.Notify) -> None:
        self.news = True

    def commit(self) -> NoReturn:
        raise not_yours()

    def rollback(self) -> NoReturn:
        raise not_yours()


class Postgresql(Store):
    product = "PostgreSQL"
    schemes = ("postgresql", "postgres")
    scripts = (_TABLES, _KEYS, _OUTBOX, _CHECKPOINTS)

    def connect(self, url: str, *, create: bool = False) -> _Connection:
        try:
            # Autocommit: BEGIN and COMMIT are sent here and nowhere else. A server that is gone is noticed in time.
            connection = _Connection.connect(
                url, autocommit=True, fallback_application_name="brokerkit", connect_timeout=10, **_keepalives(url)
            )
            connection.execute(_NOTICE_US)
            return connection
        except psycopg.ProgrammingError as error:
            raise ConfigurationError(
                f"{shown(url)} is no URL that PostgreSQL's client takes: {one_line(error)}"
            ) from None
        except psycopg.OperationalError as error:
            raise _unreachable(url, error) from None

    def begin(self, connection: Any) -> None:
        connection.execute("begin", prepare=False)

    def commit(self, connection: Any) -> None:
        status = connection.info.transaction_status
        if status == TransactionStatus.INERROR:
            raise SwallowedError
        if status == TransactionStatus.IDLE:
            raise ended_by_others()
        psycopg.Connection.commit(connection)

    def rollback(self, connection: Any) -> None:
        if not connection.closed and connection.info.transaction_status != TransactionStatus.IDLE:
            try:
                connection.execute("rollback", prepare=False)
            except psycopg.Error:
                connection.close()  # the server rolls back what loses its connection

    def close(self, connection: Any) -> None:
        connection.close()

    def failed(self, connection: Any) -> bool:
        return bool(connection.info.transaction_status == TransactionStatus.INERROR)

    def lost(self, connection: Any) -> bool:
        return bool(connection.closed or connection.info.transaction_status == TransactionStatus.UNKNOWN)

    def conflict(self, error: BaseException) -> bool:
        return any(isinstance(cause, psycopg.Error) and cause.sqlstate in _CONFLICTS for cause in causes(error))

    def missing_table(self, error: BaseException) -> bool:
        return any(
            isinstance(cause, psycopg.errors.UndefinedTable) and "brokerkit_" in str(cause) for cause in causes(error)
        )

    def own(self, error: BaseException) -> bool:
        return isinstance(error, psycopg.Error)

    def owns(self, connection: Any) -> bool:
        return isinstance(connection, psycopg.Connection)

    def in_transaction(self, connection: Any) -> bool:
        return not connection.autocommit or connection.info.transaction_status != TransactionStatus.IDLE

    def execute(self, connection: Any, sql: str) -> None:
        connection.execute(sql)

    def run(self, connection: Any, sql: str, values: Mapping[str, Any]) -> Any:
        return connection.execute(_translated(sql), values)

    def bound(self, connection: Any, seconds: float) -> None:
        connection.execute(f"set lock_timeout = {int(seconds * 1000)}")

    def version(self, connection: Any) -> int:
        if connection.execute("select to_regclass('brokerkit_version')").fetchone()[0] is None:
            return 0
        row = connection.execute("select version from brokerkit_version where part = 'inbox'").fetchone()
        return int(row[0]) if row else 0

    def durability(self, connection: Any) -> Durability:
        fsync, commit, pages, unlogged = connection.execute(_SETTINGS).fetchone()
        settings = {"fsync": fsync, "synchronous_commit": commit, "full_page_writes": pages}
        if unlogged:
            return Durability("nothing", settings, f"{unlogged} is an unlogged table, which a crash empties")
        if commit == "off":
            why = "synchronous_commit is off, so that a killed server forgets its last commits"
            return Durability("nothing", settings, why)
        if fsync == "off" or pages == "off":
            name = "fsync" if fsync == "off" else "full_page_writes"
            return Durability("process_kill", settings, f"{name} is off, so that a power cut may take commits along")
        return Durability("power_loss", settings)

    def fresh(self, connection: Any, consumer: str, ids: Sequence[str]) -> set[str]:
        with connection.cursor() as cursor:
            if len(ids) == 1:
                cursor.execute(_translated(_ONE), {"consumer": consumer, "id": ids[0]}, prepare=True)
                return set(ids) if cursor.rowcount else set()
            cursor.execute(_BATCH, (consumer, list(ids)), prepare=True)
            return {row[0] for row in cursor.fetchall()}

    def begin_fresh(self, connection: Any, consumer: str, ids: Sequence[str]) -> set[str]:
        if len(ids) != 1:
            return super().begin_fresh(connection, consumer, ids)
        return set(ids) if self.begin_run(connection, _ONE, {"consumer": consumer, "id": ids[0]}) else set()

    def begin_run(self, connection: Any, sql: str, values: Mapping[str, Any]) -> int:
        numbered, names = _numbered(sql)
        encoding = connection.info.encoding
        encoding = "utf-8" if encoding == "ascii" else encoding  # as psycopg does
        parameters = [str(values[name]).encode(encoding) for name in names]
        try:
            rows = connection.wait(_begun_with(connection, numbered, parameters))
        except psycopg.errors.InvalidSqlStatementName:
            # psycopg deallocates all statements after some of the user's, and a pooler may have changed the server.
            self.rollback(connection)
            connection.prepared.clear()
            rows = connection.wait(_begun_with(connection, numbered, parameters))
        return int(rows)

    def prune(self, connection: Any, seconds: float, most: int) -> int:
        return int(connection.execute(_PRUNE, (seconds, most)).rowcount)

    def write(self, connection: Any, outbox: str, rows: Sequence[Row]) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_WRITE, (outbox, *map(list, zip(*rows, strict=True))), prepare=True)
            cursor.execute("select pg_notify(%s, %s)", (_CHANNEL, outbox), prepare=True)

    def lag(self, connection: Any, outbox: str) -> Lag:
        rows, seconds, refused = connection.execute(_LAG, (outbox,)).fetchone()
        return Lag(rows, max(0.0, float(seconds or 0.0)), refused)

    def release(self, connection: Any, outbox: str, *, drop: bool) -> int:
        verb = "delete from brokerkit_outbox" if drop else "update brokerkit_outbox set refused = null"
        done = connection.execute(f"{verb} where outbox = %s and refused is not null", (outbox,)).rowcount
        connection.execute("select pg_notify(%s, %s)", (_CHANNEL, outbox))
        return int(done)

    def prepare(self, connection: Any) -> None:
        connection.execute("set synchronous_commit = off")
        connection.execute("set jit = off")  # a plan for a thousand rows of millions looks worth it, and never is
        connection.add_notify_handler(connection.heard)
        connection.execute(f"listen {_CHANNEL}")

    def hold(self, connection: Any, outbox: str, shards: Sequence[int], owner: str, seconds: float) -> bool:
        if connection.execute(_HELD).fetchone()[0] == len(shards):
            return True
        if all(row[0] for row in connection.execute(_HOLD, (outbox, list(shards))).fetchall()):
            return True
        self.let_go(connection, outbox, owner)
        return False

    def let_go(self, connection: Any, outbox: str, owner: str) -> None:
        connection.execute("select pg_advisory_unlock_all()")

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
        connection.news = False
        with connection.cursor(binary=True) as cursor:
            parameters = (
                outbox,
                _multirange(flying),
                list(without),
                len(shards) == SHARDS,
                list(shards),
                outbox,
                most,
                most_bytes,
            )
            cursor.execute(_WAITING, parameters, prepare=True)
            rows: list[Waiting] = cursor.fetchall()
        return rows

    def delete(self, connection: Any, ids: Sequence[int]) -> None:
        with connection.cursor() as cursor:
            if ids[-1] - ids[0] == len(ids) - 1:
                # All that a range of the index holds: a fifth of the time that it takes to look them up one by one.
                cursor.execute(_DELETE_RANGE, (ids[0], ids[-1]), prepare=True)
            else:
                cursor.execute(_DELETE, (list(ids),), prepare=True)

    def refuse(self, connection: Any, id: int, reason: str) -> None:
        connection.execute("update brokerkit_outbox set refused = %s where id = %s", (reason.replace("\0", ""), id))

    def wait(self, connection: Any, seconds: float) -> None:
        if not connection.news:
            with selectors.DefaultSelector() as selector:
                selector.register(connection.fileno(), selectors.EVENT_READ)
                selector.select(seconds)


def _begun_with(connection: _Connection, sql: bytes, values: Sequence[bytes]) -> Generator[Wait, Ready, int]:
    """BEGIN and one statement in one round trip; how many rows that were. As psycopg's own pipeline does, in half of
    its time, which counts where a transaction is about one message."""
    server = connection.pgconn
    known = connection.prepared.get(sql)
    name = known or b"brokerkit_" + secrets.token_hex(4).encode()
    try:
        server.enter_pipeline_mode()
        server.send_query_params(b"begin", None)
        if known is None:
            server.send_prepare(name, sql)
        server.send_query_prepared(name, values)
        server.pipeline_sync()
        while server.flush():
            if (yield Wait.RW) & Ready.R:
                server.consume_input()
        results: list[Any] = []
        while not results or results[-1].status != ExecStatus.PIPELINE_SYNC:
            while server.is_busy():
                yield Wait.R
                server.consume_input()
            result = server.get_result()
            if result is not None:
                results.append(result)
        server.exit_pipeline_mode()
    except BaseException:
        connection.close()  # what the server was asked, and by how much it is behind, is not known
        raise
    for result in results:
        if result.status == ExecStatus.FATAL_ERROR:
            state = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
            raise _error(state)(result.error_message.decode("utf-8", "replace").strip())
    connection.prepared[sql] = name
    return int(results[-2].command_tuples or 0)


def _error(state: str) -> type[psycopg.Error]:
    try:
        return psycopg.errors.lookup(state)
    except KeyError:
        return psycopg.DatabaseError


def _multirange(ids: Sequence[int]) -> str:
    """The ids as PostgreSQL writes sets of numbers: neighbours together, so that thousands come to a few ranges."""
    parts: list[str] = []
    start = before = None
    for id in ids:
        if start is None or before is None:
            start = id
        elif id != before + 1:
            parts.append(f"[{start},{before}]")
            start = id
        before = id
    if start is not None:
        parts.append(f"[{start},{before}]")
    return f"{{{','.join(parts)}}}"


@cache
def _translated(sql: str) -> str:
    """As psycopg wants it."""
    return _PARAMETER.sub(r"%(\1)s", sql.replace("{now}", _NOW))


@cache
def _numbered(sql: str) -> tuple[bytes, Sequence[str]]:
    """As libpq wants it, and the names of its parameters."""
    names = list(dict.fromkeys(_PARAMETER.findall(sql)))
    return _PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", sql.replace("{now}", _NOW)).encode(), names


def _keepalives(url: str) -> dict[str, Any]:
    """Seconds after which a silent server counts as gone, where the URL does not say."""
    ours = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
    return {name: value for name, value in ours.items() if name not in url}


def _unreachable(url: str, error: psycopg.OperationalError) -> BrokerkitError:
    said = one_line(error)
    if any(words in said for words in _REFUSED):
        return AccessRefused(f"{shown(url)} refuses the user: {said}")
    if re.search('database ".*" does not exist', said):
        return ConfigurationError(f"{shown(url)} names a database that does not exist: create it")
    return ConnectionLost(f"the store {shown(url)} cannot be reached: {said}")


STORE = Postgresql()
