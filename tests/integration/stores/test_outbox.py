"""Messages in the user's transaction, and the relay that sends them: real stores, real brokers, real kills."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy
from sqlalchemy.orm import Session

import brokerkit
from brokerkit import Retry, once
from brokerkit.broker import Broker
from brokerkit.errors import ConfigurationError, NotFound
from brokerkit.local.fixtures import TestBroker
from brokerkit.local.keeper import temporary_directory
from brokerkit.local.targets import target
from brokerkit.once import Outbox, Relay, derived_key

from .conftest import connect, within

pytestmark = pytest.mark.integration


def write(url: str, *ids: str, topic: str = "receipts", key: str | None = None, body: bytes = b"50") -> None:
    """In one transaction of its own."""
    outbox = Outbox(url)
    with closing(connect(url)) as db:
        for id in ids:
            outbox.send(db, topic, body, id=id, key=key)
        db.commit()


def arrived(broker: Broker, topic: str = "receipts", subscription: str = "mail", quiet: float = 1.5) -> list[str]:
    """Ids in the order in which they come, until nothing comes for so long."""
    found: list[str] = []
    with broker.consumer(topic, subscription=subscription) as consumer:
        while batch := consumer.receive(500, timeout=quiet if found else 20):
            for delivery in batch:
                found.append(delivery.id)
                delivery.ack()
        consumer.flush(10)
    return found


def empty(url: str) -> bool:
    return Outbox(url).lag().rows == 0


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`brokerkit relay`, ended with the test whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "brokerkit.cli", "relay", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


# ---------------------------------------------------------------- in the user's transaction


def test_what_is_committed_leaves_in_order_and_what_is_rolled_back_never_does(broker, url):
    outbox = Outbox(url)
    with closing(connect(url)) as db:
        outbox.send(db, "receipts", b"never", id="never")
        db.rollback()
        for number in range(100):
            sent = outbox.send(
                db, "receipts", b"50", id=f"evt-{number}", key="k", headers={"a": "b", "c": b"\xff"}, content_type="x/y"
            )
        db.commit()
    lag = outbox.lag()
    assert (lag.rows, lag.refused) == (100, 0)
    assert 0 < lag.seconds < 60
    with Relay(url, broker) as relay:
        assert within(20, lambda: empty(url))
        assert relay.state == "relaying"
    assert (relay.sent, relay.state) == (100, "closed")
    assert outbox.lag().seconds == 0
    with broker.consumer("receipts", subscription="mail") as consumer:
        first = consumer.receive(1, timeout=10)[0]
        assert (first.body, first.key, first.content_type) == (b"50", "k", "x/y")
        assert dict(first.headers) == {"a": "b", "c": b"\xff"}
        assert abs(first.published_at - sent.published_at) < 10_000
        first.nack()
    assert arrived(broker) == [f"evt-{number}" for number in range(100)]


@pytest.mark.parametrize("through", ["session", "connection"])
def test_sqlalchemy_s_transaction_holds_the_message(broker, url, through):
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    outbox = Outbox(url)
    for id, fails in (("a", False), ("b", True), ("c", False)):
        try:
            with Session(engine) if through == "session" else engine.connect() as db, db.begin():
                outbox.send(db, "receipts", b"50", id=id)
                if fails:
                    raise KeyError(id)
        except KeyError:
            pass
    engine.dispose()
    with Relay(url, broker):
        assert arrived(broker) == ["a", "c"]


def test_what_cannot_be_written_is_refused_with_what_to_do(url, tmp_path):
    outbox = Outbox(url)
    with closing(connect(url)) as db:
        with pytest.raises(ConfigurationError, match="topic is a name"):
            outbox.send(db, "", b"50")
        with pytest.raises(ConfigurationError, match="body must be bytes"):
            outbox.send(db, "receipts", "50")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="id holds a NUL"):
            outbox.send(db, "receipts", b"50", id="a\0b")
        with pytest.raises(ConfigurationError, match="reserved"):
            outbox.send(db, "receipts", b"50", headers={"brokerkit-x": "y"})
        db.execute("drop table brokerkit_outbox")
        with pytest.raises(NotFound, match="once init"):
            outbox.send(db, "receipts", b"50")
    with closing(connect(url)) as db:
        if url.startswith("sqlite"):
            db.isolation_level = None
        else:
            db.autocommit = True
        with pytest.raises(ConfigurationError, match="commits each statement by itself"):
            outbox.send(db, "receipts", b"50")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        if not url.startswith("sqlite"):
            with pytest.raises(
                ConfigurationError, match="in a PostgreSQL database, and this is a connection to SQLite"
            ):
                outbox.send(other, "receipts", b"50")
    with pytest.raises(ConfigurationError, match="1 to 200 characters"):
        Outbox(url, "")


# ---------------------------------------------------------------- in transactions over a store


def send(broker: Broker, *ids: str) -> None:
    with broker.producer("payments") as producer:
        for id in ids:
            producer.send(b"50", id=id)
        assert producer.flush(30) == 0


def written(url: str) -> list[tuple[str, str]]:
    with closing(connect(url)) as db:
        return [
            tuple(row) for row in db.execute("select topic, message_id from brokerkit_outbox order by id").fetchall()
        ]


def test_messages_of_a_transaction_leave_after_its_commit_and_an_exception_undoes_them(broker, url):
    send(broker, *(f"evt-{number}" for number in range(10)))
    with broker.transactions("payments", subscription="ledger", store=url) as transactions:
        transaction = transactions.receive(10)
        with pytest.raises(KeyError), transaction as tx:
            tx.send("receipts", b"50")
            raise KeyError("a bug")
        assert written(url) == []
        done = 0
        while done < 10:
            transaction = transactions.receive(10)
            with transaction as tx:
                for delivery in tx.deliveries:
                    sent = tx.send("receipts", delivery.body or b"", cause=delivery, key=delivery.id)
                    assert sent == derived_key("payments--ledger>receipts", delivery.id, "#1")
                    done += 1
                assert len(written(url)) == done - len(tx.deliveries), "seen before the commit"
    ids = [derived_key("payments--ledger>receipts", f"evt-{number}", "#1") for number in range(10)]
    assert written(url) == [("receipts", id) for id in ids]
    with Relay(url, broker):
        assert arrived(broker) == ids


def test_the_same_input_yields_the_same_outputs_and_another_step_or_topic_or_worker_others(broker, url):
    def outputs(subscription: str) -> list[str]:
        broker.declare("payments", subscriptions=[subscription])
        send(broker, f"evt-for-{subscription}")
        found: list[str] = []
        for _ in range(2):  # aborted, then committed
            with broker.transactions("payments", subscription=subscription, store=url) as transactions:
                transaction = transactions.receive(10)
                found.clear()
                try:
                    with transaction as tx:
                        for each in tx.each():
                            with each as delivery:
                                found += [tx.send(topic, b"50") for topic in ("receipts", "receipts", "books")]
                                found += [tx.send("receipts", b"50", step=step) for step in ("mail", "print")]
                                again = tx.send("receipts", b"50", cause=delivery, step="mail")
                                assert again == found[-2]
                        runs.append(list(found))
                        if len(runs) % 2:
                            raise KeyError("once")
                except KeyError:
                    pass
        return found

    runs: list[list[str]] = []
    outputs("ledger")
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 5


def test_without_a_cause_an_id_is_a_fresh_one(broker, url):
    send(broker, "a", "b")
    with broker.transactions("payments", subscription="ledger", store=url) as transactions:
        transaction = transactions.receive(10)
        with transaction as tx:
            if len(tx.deliveries) == 2:
                assert tx.send("receipts", b"50") != tx.send("receipts", b"50")
            assert tx.send("receipts", b"50", id="mine") == "mine"


def test_a_delivery_that_is_undone_alone_takes_its_messages_with_it(broker, url):
    send(broker, "a", "poison", "z")
    with broker.transactions("payments", subscription="ledger", store=url, on_error=Retry(attempts=2)) as transactions:

        def once_more() -> bool:
            transaction = transactions.receive(0.2)
            if transaction is not None:
                with transaction as tx:
                    for each in tx.each():
                        with each as delivery:
                            tx.send("receipts", b"50", id=f"for-{delivery.id}")
                            if delivery.id == "poison":
                                raise KeyError("poison")
            return broker.depth("payments", "ledger") == 0

        assert within(30, once_more)
    assert sorted(written(url)) == [("receipts", "for-a"), ("receipts", "for-z")]


def test_a_block_that_ended_the_transaction_itself_writes_no_message(broker, url):
    send(broker, "a")
    with broker.transactions("payments", subscription="ledger", store=url) as transactions:
        transaction = transactions.receive(10)
        with pytest.raises(ConfigurationError, match="by a statement of its own"), transaction as tx:
            tx.send("receipts", b"50")
            tx.connection.execute("commit")
    assert written(url) == []


# ---------------------------------------------------------------- the relay


def test_it_is_woken_at_once_and_a_late_commit_with_a_small_id_is_not_skipped(broker, url):
    """On PostgreSQL two transactions are open at a time, and the first to write is the last to commit."""
    with Relay(url, broker, poll=30.0):
        time.sleep(0.5)  # it has looked, and waits
        write(url, "warm")
        assert within(20, lambda: empty(url))
        began = time.monotonic()
        write(url, "a")
        assert within(20, lambda: empty(url))
        assert time.monotonic() - began < 5
        if not url.startswith("sqlite"):
            outbox = Outbox(url)
            with closing(connect(url)) as late:
                outbox.send(late, "receipts", b"50", id="late", key="k")
                write(url, "early", key="k")
                assert within(20, lambda: empty(url))
                late.commit()
            write(url, "after", key="k")
            assert within(20, lambda: empty(url))
    assert arrived(broker) == ["warm", "a"] + ([] if url.startswith("sqlite") else ["early", "late", "after"])


def test_one_relay_at_a_time_and_the_next_takes_over(broker, url):
    write(url, *(f"evt-{number}" for number in range(200)))
    with Relay(url, broker, batch=10) as first:
        assert within(20, lambda: first.state == "relaying")
        with Relay(url, broker, batch=10) as second, Relay(url, broker, share=(2, 3)) as part:
            assert within(20, lambda: empty(url))
            assert (second.state, part.state) == ("standby", "standby")
            assert within(5, lambda: first.sent == 200)  # counted a moment after the delete is seen
            assert (first.sent, second.sent, part.sent) == (200, 0, 0)
            first.close()
            write(url, "evt-200")  # of a shard that both want: either may be the next
            assert within(20, lambda: empty(url))
            assert within(5, lambda: second.sent + part.sent > 0)
            assert second.sent + part.sent == 1
    assert arrived(broker) == [*(f"evt-{number}" for number in range(200)), "evt-200"]


def test_relays_that_share_the_work_keep_the_order_of_each_key(broker, url):
    outbox = Outbox(url)
    with closing(connect(url)) as db:
        for number in range(600):
            outbox.send(db, "receipts", b"50", id=f"{number % 20}-{number:03}", key=f"{number % 20}")
        db.commit()
    with Relay(url, broker, share=(1, 2), batch=50) as first, Relay(url, broker, share=(2, 2), batch=50) as second:
        assert within(30, lambda: empty(url))
        assert first.sent > 0
        assert second.sent > 0
    found = arrived(broker)
    assert len(found) == 600
    for key in range(20):
        mine = [id for id in found if id.startswith(f"{key}-")]
        assert mine == sorted(mine)


def test_a_refused_message_stays_with_its_reason_and_holds_up_only_its_key(url, tmp_path):
    outbox = Outbox(url)
    with brokerkit.connect(f"sqlite:///{tmp_path / 'small.db'}?max_body_bytes=100") as broker:
        broker.declare("receipts", subscriptions=["mail"])
        broker.declare("others", subscriptions=["mail"])
        write(url, "a", key="k")
        write(url, "big", key="k", body=b"x" * 101)
        write(url, "behind", key="k")
        write(url, "free", key="other")
        write(url, "elsewhere", key="k", topic="others")
        write(url, "big-without-a-key", body=b"x" * 101)
        write(url, "without-a-key")
        with Relay(url, broker) as relay:
            assert within(20, lambda: relay.sent == 4)
            write(url, "behind-too", key="k")
            assert arrived(broker) == ["a", "free", "without-a-key"]
            assert arrived(broker, "others") == ["elsewhere"]
            lag = outbox.lag()
            assert (lag.rows, lag.refused) == (2, 2)
            (topic, id, reason), second = outbox.refused()
            assert (topic, id, second[1]) == ("receipts", "big", "big-without-a-key")
            assert "101 bytes" in reason
    with brokerkit.connect(f"sqlite:///{tmp_path / 'small.db'}?max_body_bytes=200") as broker:
        with Relay(url, broker):
            assert outbox.release() == 2
            assert arrived(broker) == ["big", "behind", "big-without-a-key", "behind-too"]
    assert outbox.lag().refused == 0


def test_a_topic_that_is_missing_waits_and_others_go_on(broker, url, events):
    write(url, "early", topic="not-yet")
    write(url, "a")
    told: list[Any] = []
    with Relay(url, broker, on_event=told.append):
        assert arrived(broker) == ["a"]
        assert Outbox(url).lag().rows == 1
        broker.declare("not-yet", subscriptions=["mail"])
        assert arrived(broker, "not-yet") == ["early"]
        assert within(10, lambda: empty(url))
    assert any("not-yet" in event.detail for event in told)


def test_a_relay_that_cannot_go_on_says_so(broker, url):
    with closing(connect(url)) as db:
        db.execute("drop table brokerkit_outbox")
        db.commit()
    with pytest.raises(NotFound, match="once init"), Relay(url, broker) as relay:
        assert within(20, lambda: relay.state == "closed")
    for share in ((0, 1), (2, 1), (1, 17), (1.0, 2), 3):
        with pytest.raises(ConfigurationError, match="share is"):
            Relay(url, broker, share=share)  # type: ignore[arg-type]


def test_the_command_sends_stops_in_order_and_tells_the_lag(broker, queue, url):
    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "brokerkit.cli", *arguments], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    write(url, "a", "b")
    assert run("once", "lag", url).startswith("2 waiting, the oldest for ")
    assert "2 sent" in run("relay", url, queue, "--until-empty")
    assert run("once", "lag", url) == "0 waiting, the oldest for 0.0 s, 0 refused\n"
    assert run("once", "refused", url) == ""
    assert "0 wait again" in run("once", "refused", url, "--again")
    assert "--share takes" in run("relay", url, queue, "--share", "all", code=2)
    assert "share is (n, of)" in run("relay", url, queue, "--share", "3/2", code=1)
    with command(url, queue) as process:
        write(url, "c")
        assert within(30, lambda: empty(url))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert "1 sent" in process.stdout.read()
    assert arrived(broker) == ["a", "b", "c"]


# ---------------------------------------------------------------- whatever dies


@pytest.mark.parametrize("name", ["rabbitmq", "kafka"])
def test_a_relay_killed_between_send_and_delete_doubles_on_the_wire_and_not_in_effect(request, name, url):
    server: TestBroker = request.getfixturevalue(name)
    topic = server.name("receipts")
    ids = [f"evt-{number:03}" for number in range(120)]
    with closing(connect(url)) as db:
        db.execute("create table charges (id text)")
        db.commit()

    def charges() -> list[str]:
        with closing(connect(url)) as db:
            return sorted(row[0] for row in db.execute("select id from charges").fetchall())

    with brokerkit.connect(server.url) as broker:
        broker.declare(topic, subscriptions=["ledger", "wire"])
        write(url, *ids, topic=topic, key="k")
        program = str(Path(__file__).with_name("relaying.py"))
        done = subprocess.run([sys.executable, program, url, server.url, "SIGKILL"], timeout=60)
        assert done.returncode == -signal.SIGKILL
        assert Outbox(url).lag().rows == 120, "it was killed before the delete"
        with Relay(url, broker, batch=50) as relay:
            assert within(40, lambda: empty(url))
            assert within(10, lambda: relay.sent == 120), "its count follows the delete"
        wire = arrived(broker, topic, "wire")
        assert len(wire) > 120, "nothing was sent twice"
        assert list(dict.fromkeys(wire)) == ids, "lost, or out of order"
        mark = "?" if url.startswith("sqlite") else "%s"
        with broker.transactions(topic, subscription="ledger", store=url) as transactions:

            def once_more() -> bool:
                transaction = transactions.receive(1.0)
                if transaction is not None:
                    with transaction as tx:
                        for delivery in tx.deliveries:
                            tx.connection.execute(f"insert into charges values ({mark})", (delivery.id,))
                return len(charges()) >= 120 and broker.depth(topic, "ledger") == 0

            assert within(60, once_more)
        broker.delete(topic)
    assert charges() == ids


@pytest.mark.timeout(240)
def test_a_relay_frozen_between_send_and_delete_loses_nothing_and_goes_on(broker, queue, url):
    """SQLite's lease lets another relay follow, which sends again what the first had sent; PostgreSQL's locks are the
    frozen connection's, and the others stand by."""
    ids = [f"evt-{number:03}" for number in range(40)]  # one batch: frozen in a write, it would hold the queue's file
    write(url, *ids, key="k")
    program = str(Path(__file__).with_name("relaying.py"))
    with subprocess.Popen([sys.executable, program, url, queue, "SIGSTOP"]) as first:
        try:
            assert within(30, lambda: psutil.Process(first.pid).status() == psutil.STATUS_STOPPED)
            with Relay(url, broker, batch=50) as second:
                followed = within(8, lambda: empty(url))
                assert followed is url.startswith("sqlite")
                first.send_signal(signal.SIGCONT)
                assert within(20, lambda: empty(url))
                write(url, "evt-after", key="k")
                assert within(20, lambda: empty(url))
                assert second.error is None
            assert first.poll() is None, "what others had deleted meanwhile ended it"
        finally:
            first.kill()
    wire = arrived(broker)
    assert list(dict.fromkeys(wire)) == [*ids, "evt-after"]
    assert (len(wire) > 41) is followed


def test_the_order_of_a_key_outlives_restarts_of_the_broker_and_of_the_store():
    """Both are killed in the middle, several times, while messages are written, and nothing is lost or overtaken."""
    with temporary_directory() as books, temporary_directory() as queues:
        store, rabbit = target("postgresql"), target("rabbitmq")
        try:
            store.start(books)
            rabbit.start(queues)
            once.init(store.url())
            told: list[Any] = []
            with brokerkit.connect(rabbit.url()) as broker:
                broker.declare("receipts", subscriptions=["mail"])
                with Relay(store.url(), broker, batch=100, on_event=told.append) as relay:
                    number = 0

                    def more(count: int) -> None:
                        nonlocal number
                        outbox = Outbox(store.url())
                        with closing(connect(store.url())) as db:
                            for _ in range(count):
                                outbox.send(db, "receipts", b"50", id=f"{number:05}", key=f"{number % 7}")
                                number += 1
                            db.commit()

                    for server in (rabbit, store, rabbit):
                        more(1500)
                        already = relay.sent
                        assert within(30, lambda: relay.sent > already)  # noqa: B023
                        server.kill()
                        server.restart()
                    more(10)
                    assert within(90, lambda: relay.sent >= number and empty(store.url()))
                assert any("connection to the store failed" in event.detail for event in told)
                wire = list(dict.fromkeys(arrived(broker, quiet=3.0)))
            assert sorted(wire) == [f"{each:05}" for each in range(number)]
            for key in range(7):
                mine = [id for id in wire if int(id) % 7 == key]
                assert mine == sorted(mine)
        finally:
            rabbit.stop()
            store.stop()


def test_a_message_that_the_broker_refuses_holds_up_only_its_key_on_kafka_too(kafka: TestBroker, url):
    topic = kafka.name("receipts")
    outbox = Outbox(url)
    with brokerkit.connect(kafka.url) as broker:
        broker.declare(topic, subscriptions=["mail"])
        most = broker.capabilities.max_body_bytes
        assert most is not None
        write(url, "big", topic=topic, key="k", body=b"x" * (most + 1))
        write(url, "behind", topic=topic, key="k")
        write(url, "free", topic=topic, key="other")
        with Relay(url, broker):
            assert arrived(broker, topic) == ["free"]
            assert within(10, lambda: outbox.lag().rows == 1)
            [(_, id, reason)] = outbox.refused()
            assert (id, "bytes" in reason) == ("big", True)
            assert outbox.release(drop=True) == 1
            assert arrived(broker, topic) == ["behind"]
        broker.delete(topic)
