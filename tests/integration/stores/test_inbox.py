"""The inbox in transactions of the user's own: PostgreSQL and SQLite, bare and through SQLAlchemy."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from brokerkit import once
from brokerkit.errors import AccessRefused, ConfigurationError, ConnectionLost, NotFound
from brokerkit.guarantees import Properties
from brokerkit.local.fixtures import TestBroker
from brokerkit.local.keeper import temporary_directory
from brokerkit.local.targets import target
from brokerkit.once import Inbox
from brokerkit.once.stores import store_for
from brokerkit.once.stores.contract import VERSION, stored_id

from .conftest import connect

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Message:
    id: str
    id_source: str = "producer"


def ids(messages: list[Message]) -> list[str]:
    return [message.id for message in messages]


def test_a_batch_gives_what_is_new_in_order_each_id_once(url: str):
    inbox = Inbox("ledger")
    with closing(connect(url)) as db:
        assert ids(inbox.fresh(db, [Message("c"), Message("a"), Message("c"), Message("b")])) == ["c", "a", "b"]
        db.commit()
        assert ids(inbox.fresh(db, [Message("b"), Message("d"), Message("a")])) == ["d"]
        db.commit()
        assert inbox.fresh(db, [Message("a"), Message("d")]) == []
        assert inbox.fresh(db, []) == []
        assert ids(Inbox("books").fresh(db, [Message("a")])) == ["a"]


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1"])
def test_one_message_and_a_batch_are_marked_alike(postgresql: TestBroker, encoding: str):
    """One goes its own, shorter way to the server: its id has to come out the same there."""
    once.init(postgresql.url)
    store = store_for(postgresql.url)
    consumer = postgresql.name("alike")
    with closing(store.connect(f"{postgresql.url}?client_encoding={encoding}")) as db:
        assert store.begin_fresh(db, consumer, ["d\u00e9bit"]) == {"d\u00e9bit"}
        store.commit(db)
        assert store.begin_fresh(db, consumer, ["d\u00e9bit"]) == set()
        store.rollback(db)
        assert store.begin_fresh(db, consumer, ["d\u00e9bit", "fresh"]) == {"fresh"}
        store.commit(db)
    with closing(connect(postgresql.url)) as db:
        assert ids(Inbox(consumer).fresh(db, [Message("d\u00e9bit")])) == []


def test_what_is_rolled_back_was_not_seen(url: str):
    inbox = Inbox("ledger")
    with closing(connect(url)) as db:
        assert ids(inbox.fresh(db, [Message("a")])) == ["a"]
        db.rollback()
        assert ids(inbox.fresh(db, [Message("a")])) == ["a"]


def test_a_message_that_nothing_recognises_is_always_new_each_copy_of_it(url: str):
    inbox = Inbox("ledger")
    anonymous = [Message("", "none"), Message("", "none")]
    with closing(connect(url)) as db:
        for _ in range(2):
            found = inbox.fresh(db, [anonymous[0], Message("a"), anonymous[1]])
            assert [message for message in found if message.id_source == "none"] == anonymous
            db.commit()
        assert len(found) == 2


@pytest.mark.parametrize("id", ["x" * 1000, "nul\0inside", "lone\ud800surrogate", "ü" * 200, "'; drop table", "中"])
def test_any_id_is_recognised(url: str, id: str):
    inbox = Inbox("ledger")
    with closing(connect(url)) as db:
        assert len(inbox.fresh(db, [Message(id)])) == 1
        db.commit()
        assert len(inbox.fresh(db, [Message(id), Message(id + "y")])) == 1
        assert len(stored_id(id).encode()) <= 255


@pytest.mark.parametrize("first_commits", [True, False])
def test_a_second_worker_waits_for_the_first_with_the_same_ids(url: str, first_commits: bool):
    inbox = Inbox("ledger")
    batch = [Message("a"), Message("b")]
    found: list[list[str]] = []

    def second() -> None:
        with closing(connect(url)) as db:
            found.append(ids(inbox.fresh(db, [*reversed(batch), Message("z")])))
            db.commit()

    with closing(connect(url)) as db:
        assert len(inbox.fresh(db, batch)) == 2
        thread = threading.Thread(target=second, daemon=True)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive(), "the second did not wait"
        if first_commits:
            db.commit()
        else:
            db.rollback()
        thread.join(15)
    assert found == [["z"]] if first_commits else [["b", "a", "z"]]


def test_workers_with_overlapping_batches_each_see_an_id_once_and_never_deadlock(url: str):
    """Each id is new to exactly one of them; the batches come in another order to each."""
    inbox = Inbox("ledger")
    names = [str(number) for number in range(200)]
    seen: list[str] = []
    failures: list[BaseException] = []

    def work(step: int) -> None:
        order = [names[(place * step) % 200] for place in range(200)]
        try:
            with closing(connect(url)) as db:
                for start in range(0, 200, 20):
                    seen.extend(ids(inbox.fresh(db, [Message(name) for name in order[start : start + 20]])))
                    db.commit()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(step,)) for step in (1, 3, 199, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert sorted(seen) == sorted(names)


def test_a_connection_that_commits_each_statement_is_refused(url: str):
    db = connect(url)
    if url.startswith("sqlite"):
        db.isolation_level = None
    else:
        db.autocommit = True
    with closing(db), pytest.raises(ConfigurationError, match="commits each statement by itself"):
        Inbox("ledger").fresh(db, [Message("a")])


def test_a_stranger_s_connection_is_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"builtins\.object is no connection"):
        Inbox("ledger").fresh(object(), [Message("a")])


@pytest.mark.parametrize("through", ["session", "connection"])
def test_sqlalchemy_s_transaction_holds_the_rows_and_the_marks(url: str, through: str):
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    inbox = Inbox("ledger")
    with engine.begin() as db:
        db.execute(sqlalchemy.text("create table charges (id text)"))

    def charge(*messages: str, fail: bool = False) -> None:
        with Session(engine) if through == "session" else engine.connect() as db, db.begin():
            for message in inbox.fresh(db, [Message(id) for id in messages]):
                db.execute(sqlalchemy.text("insert into charges values (:id)"), {"id": message.id})
            if fail:
                raise KeyError("afterwards")

    with pytest.raises(KeyError):
        charge("a", "b", fail=True)
    charge("a")
    charge("a", "b")
    with engine.connect() as db:
        assert sorted(db.execute(sqlalchemy.text("select id from charges")).scalars()) == ["a", "b"]
    engine.dispose()


def test_a_server_notices_within_half_a_minute_that_our_machine_is_gone(postgresql: TestBroker):
    """By default it takes two hours, for which it keeps the locks that the others wait for."""
    store = store_for(postgresql.url)

    def shown(url: str) -> list[str]:
        with closing(store.connect(url)) as db:
            return [db.execute(f"show tcp_keepalives_{name}").fetchone()[0] for name in ("idle", "interval", "count")]

    assert shown(postgresql.url) == ["10", "5", "3"]
    assert shown(f"{postgresql.url}?options=-ctcp_keepalives_idle%3D60") == ["60", "5", "3"]


@pytest.mark.parametrize(
    ("properties", "hours"),
    [
        (Properties(redelivery_seconds=30.0), 1.0),
        (Properties(redelivery_seconds=2 * 3600.0), 2.0),
        (Properties(redelivery_seconds=1800.0, retention_seconds=86_400.0), 24.5),
    ],
)
def test_a_window_shorter_than_the_horizon_of_the_broker_is_refused(url: str, properties: Properties, hours: float):
    least = once.horizon(properties)
    assert least == timedelta(hours=hours)
    with pytest.raises(ConfigurationError, match="still hand out again"):
        once.prune(url, least - timedelta(seconds=1), least=least)
    assert once.prune(url, least, least=least) == 0
    assert once.prune(url, timedelta(seconds=1), least=least, anyway=True) == 0


def test_pruning_forgets_what_is_older_than_the_window_in_batches(url: str):
    inbox = Inbox("ledger")
    with closing(connect(url)) as db:
        inbox.fresh(db, [Message(str(number)) for number in range(250)])
        old = "unixepoch() - 7200" if url.startswith("sqlite") else "now() - interval '2 hours'"
        db.execute(f"update brokerkit_inbox set seen_at = {old} where message_id <> '7'")
        db.commit()
        assert once.prune(url, timedelta(hours=3)) == 0
        assert once.prune(url, timedelta(hours=1), batch=100) == 249
        assert ids(inbox.fresh(db, [Message("7"), Message("8")])) == ["8"]


def test_a_window_that_brokers_outlast_is_refused_unless_told_otherwise(url: str):
    with pytest.raises(ConfigurationError, match="still hand out again"):
        once.prune(url, timedelta(minutes=5))
    assert once.prune(url, timedelta(0), anyway=True) == 0
    with pytest.raises(ConfigurationError, match=r"a datetime\.timedelta, not int"):
        once.prune(url, 30)  # type: ignore[arg-type]


@pytest.mark.parametrize("jump", [timedelta(days=400), timedelta(days=-400)])
def test_when_the_clocks_disagree_nothing_is_forgotten(url: str, jump: timedelta, monkeypatch: pytest.MonkeyPatch):
    """By a store's clock that has jumped forward every mark is old: as many days ago the others' clocks say it is."""
    with closing(connect(url)) as db:
        Inbox("ledger").fresh(db, [Message("a")])
        aged = "unixepoch() - 86400" if url.startswith("sqlite") else "now() - interval '1 day'"
        db.execute(f"update brokerkit_inbox set seen_at = {aged}")
        db.commit()
        truth = time.time
        monkeypatch.setattr("brokerkit.once.tables.time.time", lambda: truth() - jump.total_seconds())
        side = "ahead of" if jump > timedelta(0) else "behind"
        with pytest.raises(ConfigurationError, match=f"{side} this machine's: nothing was forgotten"):
            once.prune(url, timedelta(hours=1))
        monkeypatch.undo()
        assert once.prune(url, timedelta(hours=1)) == 1


# ---------------------------------------------------------------- tables and connections


def test_init_can_be_said_again_and_at_the_same_time(url: str):
    assert once.init(url) == VERSION
    with closing(connect(url)) as db:
        db.execute("drop table brokerkit_inbox")
        db.execute("drop table brokerkit_version")
        db.commit()
    command = [sys.executable, "-c", "import sys; from brokerkit import once; once.init(sys.argv[1])", url]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=60)[1] for process in processes] == [""] * 4
    assert once.init(url) == VERSION


def test_the_printed_sql_makes_the_same_tables(url: str):
    with closing(connect(url)) as db:
        db.execute("drop table brokerkit_inbox")
        db.execute("drop table brokerkit_version")
        store_for(url).execute(db, once.script(url))
        db.commit()
    assert once.init(url) == VERSION
    with closing(connect(url)) as db:
        assert len(Inbox("ledger").fresh(db, [Message("a")])) == 1


def test_missing_and_older_and_newer_tables_are_told_apart_with_what_to_do(url: str):
    with closing(connect(url)) as db:
        db.execute("update brokerkit_version set version = 0")
        db.commit()
        with pytest.raises(NotFound, match="brokerkit once init"):
            once.durability(url)
        db.execute("update brokerkit_version set version = 99")
        db.commit()
        with pytest.raises(ConfigurationError, match="upgrade"):
            once.durability(url)
        db.execute("drop table brokerkit_version")
        db.commit()
    with pytest.raises(NotFound, match="run `brokerkit once init"):
        once.durability(url)


def test_an_older_version_names_the_command_which_brings_it_up(url: str):
    with closing(connect(url)) as db:
        Inbox("ledger").fresh(db, [Message("a")])
        db.execute("drop table brokerkit_outbox")
        db.execute("update brokerkit_version set version = 1")
        db.commit()
        words = f"of version 1, this brokerkit wants {VERSION}: run `brokerkit once init"
        with pytest.raises(ConfigurationError, match=words):
            once.durability(url)
        assert once.init(url) == 1
        assert Inbox("ledger").fresh(db, [Message("a")]) == []
    assert once.Outbox(url).lag().rows == 0


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("postgresql://me:hunter2@127.0.0.1:9/books", ConnectionLost, "cannot be reached"),
        ("postgresql://me:hunter2@127.0.0.1:9/books?nosuch=1", ConfigurationError, "nosuch"),
        ("mysql://me:hunter2@127.0.0.1/books", ConfigurationError, "no store serves mysql://"),
        ("books.db", ConfigurationError, "a store's URL looks like"),
        ("sqlite:////nowhere/at/all.db", ConfigurationError, "directory that does not exist"),
        ("sqlite:///nowhere.db", NotFound, "once init"),
        ("sqlite:///nowhere.db?colour=red", ConfigurationError, "known: busy_timeout, synchronous"),
        ("sqlite://", ConfigurationError, "is a file"),
    ],
)
def test_a_store_that_cannot_be_had_says_why_and_no_password(url: str, error: type[Exception], words: str, tmp_path):
    with pytest.raises(error, match=words) as raised:
        once.durability(url)
    assert "hunter2" not in str(raised.value)


def test_a_refused_user_and_a_missing_database_are_told_apart(postgresql: TestBroker):
    host = postgresql.url.rpartition("@")[2].partition("/")[0]
    with pytest.raises(AccessRefused, match="refuses the user"):
        once.durability(f"postgresql://nosuch:hunter2@{host}/postgres")
    with pytest.raises(ConfigurationError, match="does not exist: create it"):
        once.durability(f"postgresql://postgres@{host}/nosuch")


def test_a_file_that_is_no_database_is_told(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("not a database, " * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        once.durability(f"sqlite:///{tmp_path / 'notes.txt'}")


# ---------------------------------------------------------------- what a commit survives


@pytest.mark.parametrize(
    ("query", "survives", "loss"),
    [
        ("", "power_loss", "never"),
        ("?synchronous=extra", "power_loss", "never"),
        ("?synchronous=normal", "process_kill", "possible"),
        ("?synchronous=off", "process_kill", "possible"),
    ],
)
def test_sqlite_s_claim_follows_its_settings(tmp_path: Path, query: str, survives: str, loss: str):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    once.init(url)
    found = once.durability(url + query)
    assert (found.survives, found.claim().loss, found.claim().duplicate) == (survives, loss, "never")
    assert found.settings["journal_mode"] == "wal"


@pytest.mark.parametrize(("option", "survives"), [("on", "power_loss"), ("off", "nothing"), ("local", "power_loss")])
def test_postgresql_s_claim_follows_synchronous_commit(postgresql: TestBroker, option: str, survives: str):
    once.init(postgresql.url)
    found = once.durability(f"{postgresql.url}?options=-csynchronous_commit%3D{option}")
    assert found.survives == survives
    assert found.settings["synchronous_commit"] == option
    assert ("synchronous_commit is off" in found.claim().condition) is (option == "off")


def test_the_command_makes_prints_and_prunes(url: str):
    def run(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "brokerkit.cli", "once", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    said = run("init", url)
    assert f"tables of version {VERSION}, as before\na commit survives power loss (" in said
    assert run("init", url, "--print") == once.script(url)
    assert run("prune", url, "--older-than", "30d") == "0 forgotten\n"
    assert "less" in run("prune", "--help")
    assert "still hand out again" in run("prune", url, "--older-than", "5m", code=1)
    assert run("prune", url, "--older-than", "5m", "--anyway") == "0 forgotten\n"
    sqs = ("--broker", "sqs://id:secret@127.0.0.1:1/us-east-1")
    assert "give at least 14 days" in run("prune", url, "--older-than", "14d", *sqs, code=1)
    assert run("prune", url, "--older-than", "14d", *sqs, "--anyway") == "0 forgotten\n"
    assert run("prune", url, "--older-than", "15d", *sqs) == "0 forgotten\n"
    pubsub = ("--broker", "pubsub://project?emulator_host=127.0.0.1:1&retention=86400")
    assert "give at least 1 day, 0:00:32" in run("prune", url, "--older-than", "1d", *pubsub, code=1)
    assert run("prune", url, "--older-than", "2d", *pubsub) == "0 forgotten\n"
    said = run("prune", url, "--older-than", "2h", "--broker", "sqlite:///queue.db")
    assert "outlast the longest time without one" in said
    assert "0 forgotten" in said
    assert "takes a number" in run("prune", url, "--older-than", "soon", code=2)


def test_pruning_that_waits_too_long_for_others_is_to_be_run_again(postgresql: TestBroker):
    once.init(postgresql.url)
    with closing(connect(postgresql.url)) as db, closing(connect(postgresql.url)) as other:
        Inbox("ledger").fresh(db, [Message("held")])
        db.execute("update brokerkit_inbox set seen_at = now() - interval '2 hours' where message_id = 'held'")
        db.commit()
        other.execute("select from brokerkit_inbox where message_id = 'held' for update")
        with pytest.raises(ConnectionLost, match="was broken off, run it again"):
            once.prune(f"{postgresql.url}?options=-clock_timeout%3D100ms", timedelta(hours=1))
        other.rollback()
        assert once.prune(postgresql.url, timedelta(hours=1)) >= 1


def test_the_command_prunes_again_through_an_outage_of_the_store():
    """As a job: an outage is said, and the next time after it the work is done."""
    server = target("postgresql")
    with temporary_directory("brokerkit-test-") as folder:
        try:
            server.start(folder)
            url = server.url()
            once.init(url)
            command = [
                sys.executable,
                "-m",
                "brokerkit.cli",
                "once",
                "prune",
                url,
                "--older-than",
                "1h",
                "--every",
                "1s",
            ]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
                try:
                    assert job.stdout is not None
                    assert job.stdout.readline() == "0 forgotten\n"
                    server.kill()
                    assert any("tried again in 0:00:01" in job.stdout.readline() for _ in range(10))
                    server.restart()
                    with closing(connect(url)) as db:
                        Inbox("ledger").fresh(db, [Message("a")])
                        db.execute("update brokerkit_inbox set seen_at = now() - interval '2 hours'")
                        db.commit()
                    assert any("1 forgotten" in job.stdout.readline() for _ in range(20))
                finally:
                    job.kill()
        finally:
            server.stop()
