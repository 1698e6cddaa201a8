"""What the sqlite plugin says of files, URLs and settings that are wrong, and of what raw clients wrote."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from brokerkit_sqlite.engine import schema
from brokerkit_sqlite.engine.place import file_system
from brokerkit_sqlite.engine.session import DiskFull, explain
from brokerkit_sqlite.local import LocalFile
from brokerkit_sqlite.settings import path_of

import brokerkit
from brokerkit.driver import Subscription
from brokerkit.errors import Closed, ConfigurationError, ConnectionLost, NotFound
from brokerkit.guarantees import FailurePoint, Guarantee, Likelihood
from brokerkit.plugins import Url


def connect(path: Path, query: str = "", **settings):
    return brokerkit.connect(f"sqlite:///{path}{query}", **settings)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://queue.db", "no host"),
        ("sqlite://", "names a file"),
        ("sqlite:///", "names a file"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///queue.db?synchronous=OFF", "FULL"),
        ("sqlite:///queue.db?busy_timeout=soon", "busy_timeout"),
        ("sqlite:///queue.db?lease_seconds=-1", "lease_seconds"),
        ("sqlite:///queue.db?leases=30", "lease_seconds"),
        ("sqlite:///queue.db?client.journal_mode=DELETE", "cache_size"),
        ("sqlite:///queue.db?client.cache_size=1;drop", "number or a word"),
    ],
)
def test_a_wrong_url_is_an_error_that_names_the_cure(url, says):
    with pytest.raises(ConfigurationError, match=says):
        brokerkit.connect(url)


def test_relative_and_absolute_paths():
    assert path_of(Url("sqlite", "", "/queue.db")) == Path.cwd() / "queue.db"
    assert path_of(Url("sqlite", "", "//var/queue.db")) == Path("/var/queue.db")


def test_names_that_mean_something_in_sqlite_uris_are_only_names(tmp_path):
    path = tmp_path / "a b%3f#ü.db"
    with connect(str(path).replace("%", "%25").replace("#", "%23")) as broker:
        broker.declare("orders", ["main"])
    assert path.exists()


def test_a_missing_directory_is_named(tmp_path):
    with connect(tmp_path / "missing" / "queue.db") as broker:
        with pytest.raises(ConfigurationError, match="directory does not exist"):
            broker.declare("orders", ["main"])
        with pytest.raises(ConfigurationError, match="directory does not exist"):
            broker.producer("orders")


def test_a_directory_is_no_file(tmp_path):
    with connect(tmp_path) as broker, pytest.raises(ConfigurationError, match="it is a directory"):
        broker.declare("orders", ["main"])


def test_a_missing_file_is_made_by_declare_alone(tmp_path):
    path = tmp_path / "queue.db"
    with connect(path) as broker:
        for attempt in (
            lambda: broker.producer("orders"),
            lambda: broker.consumer("orders", subscription="main"),
            lambda: broker.depth("orders", "main"),
        ):
            with pytest.raises(NotFound, match="declare"):
                attempt()
        broker.delete("orders")
        assert broker.describe()["product"] == "SQLite"
        assert not path.exists()


@pytest.mark.parametrize("content", [b"not a database, " * 1000, b"short"])
def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with connect(path) as broker, pytest.raises(ConfigurationError, match=r"'notes.txt' is not a SQLite database"):
        broker.declare("orders", ["main"])
    assert path.read_bytes() == content


def test_another_programs_database_is_left_alone(tmp_path):
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("CREATE TABLE users(name)")
    with connect(path) as broker, pytest.raises(ConfigurationError, match="another program's"):
        broker.declare("orders", ["main"])
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_file_of_another_format_is_named(rig):
    rig.declare()
    rig.driver.close(1.0)
    with closing(sqlite3.connect(rig.path)) as raw:
        raw.execute("PRAGMA user_version=99")
    with connect(rig.path) as broker, pytest.raises(ConfigurationError, match="format 99"):
        broker.declare("orders", ["main"])


def test_an_old_sqlite_is_named():
    with pytest.raises(ConfigurationError, match=r"SQLite is 3\.34\.1; 3\.35 or newer"):
        schema.check_version((3, 34, 1))


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (sqlite3.SQLITE_READONLY, ConfigurationError, "cannot be written"),
        (sqlite3.SQLITE_FULL, DiskFull, "disk of 'queue.db' is full"),
        (sqlite3.SQLITE_CORRUPT, ConfigurationError, "damaged"),
        (sqlite3.SQLITE_BUSY, ConnectionLost, "busy_timeout"),
        (sqlite3.SQLITE_IOERR, ConnectionLost, "queue.db"),
    ],
)
def test_sqlites_errors_become_ours(code, kind, says):
    error = sqlite3.OperationalError("some trouble")
    error.sqlite_errorcode = code
    explained = explain(error, Path("/somewhere/queue.db"))
    assert isinstance(explained, kind)
    assert says in str(explained)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_read_only_file_is_named(rig):
    rig.declare()
    rig.driver.close(1.0)
    rig.path.chmod(0o400)
    with connect(rig.path) as broker, pytest.raises(ConfigurationError, match="cannot be written"):
        broker.declare("orders", ["other"])


def test_declaring_again_changes_nothing_and_names_a_difference(rig):
    rig.declare(attempts=3, dead_letter="graves", handling_seconds=60, native={"lease_seconds": 5})
    rig.declare(attempts=3, dead_letter="graves")
    rig.declare()
    for difference, says in (
        ({"attempts": 4}, "attempts 3, not 4"),
        ({"dead_letter": "other"}, "dead_letter graves, not other"),
        ({"handling_seconds": 61}, "handling_seconds 60.0, not 61"),
        ({"native": {"lease_seconds": 6}}, "lease_seconds 5.0, not 6"),
        ({"native": {"retention_seconds": 6}}, "retention_seconds 0.0, not 6"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            rig.declare(**difference)


@pytest.mark.parametrize(
    ("native", "says"),
    [({"colour": 1}, "retention_seconds"), ({"lease_seconds": "x"}, "number"), ({"lease_seconds": 0}, "0.1")],
)
def test_wrong_native_settings_are_named(rig, native, says):
    with pytest.raises(ConfigurationError, match=says):
        rig.declare(native=native)


def test_blocking_retries_are_refused_by_name(rig):
    with pytest.raises(ConfigurationError, match="retry='block'"):
        rig.driver.declare("orders", [Subscription("main", retry="block")], {})


def test_a_failed_declare_leaves_nothing_behind(rig):
    with pytest.raises(ConfigurationError):
        rig.driver.declare("orders", [Subscription("main"), Subscription("other", retry="block")], {})
    with pytest.raises(NotFound):
        rig.driver.depth("orders", "main")


def test_declaring_dead_letters_makes_a_subscription_for_them(rig):
    rig.declare(attempts=3, dead_letter="graves")
    assert rig.driver.depth("graves", "dead") == 0


def test_a_raw_client_writes_what_a_consumer_reads(rig):
    rig.declare()
    inbox = rig.inbox()
    with closing(sqlite3.connect(rig.path)) as raw:
        raw.execute("INSERT INTO published(topic, body) VALUES ('orders', x'2a')")
        raw.execute(
            "INSERT INTO published(topic, id, key, content_type, published_at, headers, body) VALUES "
            "('orders', 'evt-1', 'k', 'text/plain', 17, '{\"a\": \"b\"}', x'2b')"
        )
        raw.commit()
    bare, whole = inbox.receive()
    assert (bare.body, bare.id, bare.id_source, bare.key, bare.published_at) == (b"*", "orders/0@1", "native", None, 0)
    assert dict(bare.headers) == {}
    assert (whole.body, whole.id, whole.id_source, whole.key) == (b"+", "evt-1", "producer", "k")
    assert dict(whole.headers) == {"a": "b"}
    assert inbox.ack(bare, whole) == ["settled"] * 2


def test_a_raw_client_cannot_send_where_nobody_listens(rig):
    rig.driver.declare("orders", [], {})
    with closing(sqlite3.connect(rig.path)) as raw:
        for topic in ("orders", "nowhere"):
            with pytest.raises(sqlite3.IntegrityError, match="no subscription"):
                raw.execute("INSERT INTO published(topic, body) VALUES (?, x'2a')", (topic,))


@pytest.mark.parametrize(
    ("headers", "seen"),
    [
        ("no json", {}),
        ("[1]", {}),
        (b"\xff\xfe", {}),
        ('{"n": 1, "o": {"x": null}, "": "unnamed"}', {"n": "1", "o": '{"x":null}'}),
        ('{"b": {"base64": "/w=="}, "c": {"base64": "?"}}', {"b": b"\xff", "c": '{"base64":"?"}'}),
    ],
)
def test_broken_metadata_of_a_foreign_producer_is_no_error(rig, headers, seen):
    rig.declare()
    with closing(sqlite3.connect(rig.path)) as raw:
        raw.execute(
            "INSERT INTO published(topic, id, key, content_type, published_at, headers, body) "
            "VALUES ('orders', CAST(x'ff' AS TEXT), x'fe', 7, 'yesterday', ?, 'text')",
            (headers,),
        )
        raw.commit()
    [received] = rig.inbox().receive()
    assert dict(received.headers) == seen
    assert (received.body, received.key, received.content_type, received.published_at) == (b"text", "\ufffd", "7", 0)
    assert isinstance(received.id, str)


def test_client_settings_reach_sqlite(tmp_path):
    with connect(tmp_path / "queue.db", "?client.page_size=8192&client.cache_size=-999&synchronous=normal") as broker:
        broker.declare("orders", ["main"])
        session = broker.driver._session
        found = [
            session.connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_size", "cache_size", "synchronous")
        ]
    assert found == [8192, -999, 1]


@pytest.mark.parametrize("producer", Guarantee)
@pytest.mark.parametrize("consumer", Guarantee)
def test_claims_cover_every_failure_point_and_at_least_once_never_loses(rig, producer, consumer):
    claims = rig.driver.claims(producer, consumer)
    of_transactions = {str(point) for point in FailurePoint if point.startswith(("txn", "zombie", "external"))}
    atomic = consumer is Guarantee.EXACTLY_ONCE
    assert set(claims.points) == {str(point) for point in FailurePoint} - (set() if atomic else of_transactions)
    for point, claim in claims.points.items():
        assert claim.condition
        if Guarantee.AT_MOST_ONCE not in (producer, consumer):
            assert claim.loss is Likelihood.NEVER, point
        if consumer is Guarantee.AT_MOST_ONCE:
            assert claim.duplicate is Likelihood.NEVER, point
        if atomic and point != FailurePoint.EXTERNAL_EFFECT_DOUBLES:
            assert claim.duplicate is Likelihood.NEVER, point


def test_a_weaker_setting_weakens_the_claims(rig):
    full = rig.driver.claims(Guarantee.AT_LEAST_ONCE, Guarantee.AT_LEAST_ONCE)
    weak = rig.another(synchronous="NORMAL", lease_seconds=5, retention_seconds=60).claims(
        Guarantee.EXACTLY_ONCE, Guarantee.AT_LEAST_ONCE
    )
    assert full.points[FailurePoint.BROKER_KILLED].loss is Likelihood.NEVER
    assert weak.points[FailurePoint.BROKER_KILLED].loss is Likelihood.POSSIBLE
    assert any("NORMAL" in note for note in weak.properties.notes)
    assert weak.properties.lease_seconds == 5
    assert (weak.properties.dedup, weak.properties.dedup_window_seconds) == ("message_id", 86_400)
    assert full.properties.dedup == "none"


def test_the_file_system_is_known_on_linux(tmp_path):
    if Path("/proc/mounts").exists():
        assert file_system(tmp_path)


def test_no_body_and_no_setting_of_a_message_is_in_a_repr(rig):
    rig.declare()
    rig.outbox().send(b"secret body")
    [received] = rig.inbox().receive()
    assert "secret" not in repr(received)


def test_the_local_broker_is_a_path_and_nothing_runs(tmp_path):
    local = LocalFile()
    assert local.provision().kind == "broker"
    local.start(tmp_path / "a b", settings={"lease_seconds": "2"})
    assert (local.pids(), local.upstream(), local.leader("orders", "main")) == ([], [], None)
    with brokerkit.connect(local.url()) as broker:
        broker.declare("orders", ["main"])
    assert (tmp_path / "a b" / "queue.db").exists()
    for impossible in (local.kill, local.restart, local.pause, local.resume):
        with pytest.raises(brokerkit.NotSupported):
            impossible()
    with pytest.raises(brokerkit.NotSupported):
        local.start(tmp_path, nodes=3)
    local.stop()


def test_use_after_close_is_an_error(rig):
    rig.declare()
    rig.driver.close(1.0)
    for attempt in (rig.declare, rig.outbox, rig.inbox, lambda: rig.driver.depth("orders", "main")):
        with pytest.raises(Closed):
            attempt()
