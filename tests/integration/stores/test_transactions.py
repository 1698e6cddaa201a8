"""`broker.transactions(store=…)`: effects exactly once, whatever dies in between."""

from __future__ import annotations

import _thread
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest

import brokerkit
from brokerkit import Retry, once
from brokerkit.broker import Broker
from brokerkit.errors import Closed, ConfigurationError, ConnectionLost, NotFound
from brokerkit.events import EventKind
from brokerkit.local.fixtures import TestBroker
from brokerkit.local.keeper import temporary_directory
from brokerkit.local.targets import target
from brokerkit.once.transactions import StoreTransaction, StoreTransactions

from .conftest import connect, within
from .relay import relay

pytestmark = pytest.mark.integration


@pytest.fixture
def charges(url: str) -> Callable[[], list[str]]:
    """What is in the books."""
    with closing(connect(url)) as db:
        db.execute("create table charges (id text)")
        db.commit()

    def read() -> list[str]:
        with closing(connect(url)) as db:
            return sorted(row[0] for row in db.execute("select id from charges").fetchall())

    return read


def send(broker: Broker, *ids: str, topic: str = "payments") -> list[str]:
    with broker.producer(topic) as producer:
        for id in ids:
            producer.send(b"50", id=id)
        assert producer.flush(30) == 0
    return sorted(ids)


def charge(tx: StoreTransaction, id: str) -> None:
    mark = "?" if "sqlite" in type(tx.connection).__module__ else "%s"
    tx.connection.execute(f"insert into charges values ({mark})", (id,))


def work(
    transactions: StoreTransactions, done: Callable[[], bool], each: Callable[[StoreTransaction, str], None] = charge
) -> None:
    """Takes transactions until it is done."""

    def once_more() -> bool:
        transaction = transactions.receive(0.2)
        if transaction is not None:
            with transaction as tx:
                for delivery in tx.deliveries:
                    each(tx, delivery.id)
        return done()

    assert within(60, once_more)


def work_in_savepoints(
    transactions: StoreTransactions, done: Callable[[], bool], each: Callable[[StoreTransaction, str], None]
) -> None:
    """The same, each delivery by itself."""

    def once_more() -> bool:
        transaction = transactions.receive(0.2)
        if transaction is not None:
            with transaction as tx:
                for one in tx.each():
                    with one as delivery:
                        each(tx, delivery.id)
        return done()

    assert within(30, once_more)


def test_rows_and_marks_are_committed_together_and_acked_after(broker, url, charges):
    sent = send(broker, *(f"evt-{number}" for number in range(250)))
    with broker.transactions("payments", subscription="ledger", store=url) as transactions:
        assert transactions.durability.survives == "power_loss"
        assert transactions.claim.duplicate == "never"
        work(transactions, lambda: len(charges()) == 250)
        assert within(10, lambda: broker.depth("payments", "ledger") == 0)
        assert charges() == sent


def test_what_was_seen_is_left_out_and_acked(broker, url, charges):
    """The same ids again: the broker stores them, the producer's window being over."""
    sent = send(broker, "a", "b")
    with broker.transactions("payments", subscription="ledger", store=url) as transactions:
        work(transactions, lambda: charges() == sent)
    broker.declare("again", subscriptions=["ledger"])
    with closing(connect(url)) as db:
        db.execute("insert into brokerkit_inbox (consumer, message_id) values ('again--ledger', 'a')")
        db.commit()
    send(broker, "a", "c", topic="again")
    with broker.transactions("again", subscription="ledger", store=url) as transactions:
        work(transactions, lambda: len(charges()) == 3)
        assert within(10, lambda: broker.depth("again", "ledger") == 0)
    assert charges() == ["a", "b", "c"]


def test_an_exception_undoes_all_and_the_same_messages_come_again(broker, url, charges):
    sent = send(broker, "a", "b", "c")
    with broker.transactions("payments", subscription="ledger", store=url) as transactions:
        transaction = transactions.receive(10)
        assert transaction is not None
        with pytest.raises(KeyError), transaction as tx:
            charge(tx, "a")
            raise KeyError("a bug")
        assert transaction.state == "aborted"
        assert charges() == []
        work(transactions, lambda: charges() == sent)


def test_after_an_exception_another_worker_gets_them(broker, url, charges):
    sent = send(broker, "a", "b")
    with (
        pytest.raises(KeyError),
        broker.transactions("payments", subscription="ledger", store=url) as transactions,
    ):
        for transaction in transactions:
            with transaction as tx:
                charge(tx, "a")
                raise KeyError("a bug")
    assert charges() == []
    with broker.transactions("payments", subscription="ledger", store=url) as transactions:
        work(transactions, lambda: charges() == sent)


def test_poison_in_a_batch_undoes_no_neighbour_and_goes_to_the_dead_letters(broker, url, charges):
    send(broker, *(f"evt-{number}" for number in range(40)), "poison")
    tried: list[str] = []
    retry = Retry(attempts=3)

    def each(tx: StoreTransaction, id: str) -> None:
        charge(tx, id)
        if id == "poison":
            tried.append(id)
            raise KeyError("poison")

    with broker.transactions("payments", subscription="ledger", store=url, on_error=retry) as transactions:
        work_in_savepoints(transactions, lambda: len(charges()) == 40 and len(tried) == 3, each)
        assert within(10, lambda: broker.depth("payments", "ledger") == 0)
    assert "poison" not in charges()
    with broker.consumer("payments-dead", subscription="dead") as dead:
        (letter,) = dead.receive(10, timeout=10)
        assert (letter.id, letter.dead_reason) == ("poison", "KeyError in 3 transactions")
    with closing(connect(url)) as db:
        marks = db.execute("select count(*) from brokerkit_inbox where message_id = 'poison'").fetchone()[0]
        assert marks == 0, "put back from the dead letters it would be taken for a repetition"


def test_poison_that_stands_in_no_savepoint_is_found_by_halves(broker, url, charges):
    send(broker, *(f"evt-{number}" for number in range(20)), "poison")

    def each(tx: StoreTransaction, id: str) -> None:
        charge(tx, id)
        if id == "poison":
            raise KeyError("poison")

    retry = Retry(attempts=2)
    with broker.transactions("payments", subscription="ledger", store=url, on_error=retry) as transactions:
        work(transactions, lambda: len(charges()) == 20 and broker.depth("payments", "ledger") == 0, each)
    with broker.consumer("payments-dead", subscription="dead") as dead:
        assert [letter.id for letter in dead.receive(10, timeout=10)] == ["poison"]


def test_a_failing_statement_is_that_delivery_s_alone(broker, url, charges):
    """In PostgreSQL it also bars the transaction until somebody rolls back."""
    send(broker, "a", "poison", "z")
    retry = Retry(attempts=2)

    def each(tx: StoreTransaction, id: str) -> None:
        charge(tx, id)
        if id == "poison":
            tx.connection.execute("select * from no_such_table")

    with broker.transactions("payments", subscription="ledger", store=url, on_error=retry) as transactions:
        work_in_savepoints(transactions, lambda: broker.depth("payments", "ledger") == 0, each)
    assert charges() == ["a", "z"]


def test_a_failed_statement_whose_exception_was_swallowed_is_not_taken_for_a_commit(broker, postgresql):
    once.init(postgresql.url)
    send(broker, "a")
    with broker.transactions("payments", subscription="ledger", store=postgresql.url) as transactions:
        transaction = transactions.receive(10)
        assert transaction is not None
        with pytest.raises(brokerkit.BrokerkitError, match="put a savepoint around"), transaction as tx:
            with pytest.raises(psycopg.errors.UndefinedTable):
                tx.connection.execute("select * from no_such_table")
        assert transaction.state == "aborted"
    assert broker.depth("payments", "ledger") == 1


def test_a_block_that_ends_the_transaction_itself_is_told_and_nothing_is_acked(broker, url, charges):
    send(broker, "a")
    with broker.transactions("payments", subscription="ledger", store=url) as transactions:
        for words, statement in (("when its block is left", None), ("by a statement of its own", "commit")):
            transaction = transactions.receive(10)
            assert transaction is not None
            with pytest.raises(ConfigurationError, match=words), transaction as tx:
                if statement is None:
                    tx.connection.commit()
                else:
                    tx.connection.execute(statement)
            assert broker.depth("payments", "ledger") == 1


def test_a_deadlock_runs_the_whole_transaction_again(broker, postgresql, events):
    """Two workers update two rows in opposite orders; PostgreSQL ends one of them."""
    once.init(postgresql.url)
    table = postgresql.name("deadlock").replace("-", "_")
    with closing(psycopg.connect(postgresql.url, autocommit=True)) as db:
        db.execute(f"create table {table} (account text primary key, balance integer)")
        db.execute(f"insert into {table} values ('x', 0), ('y', 0)")
    meet = threading.Barrier(2)
    runs: list[int] = []
    failures: list[BaseException] = []

    def worker(topic: str, order: str) -> None:
        try:
            with broker.transactions(topic, subscription="ledger", store=postgresql.url) as transactions:
                ended = ""
                while ended != "committed":
                    transaction = transactions.receive(0.5)
                    if transaction is None:
                        continue
                    runs.append(1)
                    with transaction as tx:
                        tx.connection.execute(
                            f"update {table} set balance = balance + 50 where account = %s", (order[0],)
                        )
                        if len(runs) <= 2:
                            meet.wait(10)
                        tx.connection.execute(
                            f"update {table} set balance = balance + 50 where account = %s", (order[1],)
                        )
                    ended = transaction.state
        except BaseException as error:
            failures.append(error)

    for topic in ("to-x", "to-y"):
        broker.declare(topic, subscriptions=["ledger"])
        send(broker, "a", topic=topic)
    threads = [threading.Thread(target=worker, args=arguments) for arguments in (("to-x", "xy"), ("to-y", "yx"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert len(runs) == 3, "nobody was ended, or a run was for nothing"
    with closing(psycopg.connect(postgresql.url)) as db:
        assert db.execute(f"select balance from {table}").fetchall() == [(100,), (100,)]


def test_a_serialization_failure_runs_the_whole_transaction_again(broker, postgresql):
    url = f"{postgresql.url}?options=-cdefault_transaction_isolation%3Dserializable"
    once.init(url)
    table = postgresql.name("serial").replace("-", "_")
    with closing(psycopg.connect(postgresql.url, autocommit=True)) as db:
        db.execute(f"create table {table} (balance integer)")
        db.execute(f"insert into {table} values (0)")
        send(broker, "a")
        states = []
        with broker.transactions("payments", subscription="ledger", store=url) as transactions:
            while "committed" not in states:
                transaction = transactions.receive(5)
                if transaction is None:
                    continue
                with transaction as tx:
                    (balance,) = tx.connection.execute(f"select balance from {table}").fetchone()
                    if not states:  # somebody else is faster
                        db.execute(f"update {table} set balance = balance + 1")
                    tx.connection.execute(f"update {table} set balance = %s", (balance + 50,))
                states.append(transaction.state)
        assert states == ["aborted", "committed"]
        assert db.execute(f"select balance from {table}").fetchone() == (51,)


def test_prepared_statements_that_are_gone_are_prepared_again(broker, postgresql):
    """psycopg deallocates all of them after a DROP, ALTER or ROLLBACK, a pooler after each transaction."""
    once.init(postgresql.url)
    table = postgresql.name("gone").replace("-", "_")
    send(broker, *(f"gone-{number}" for number in range(6)))
    states = []
    with broker.transactions("payments", subscription="ledger", store=postgresql.url, max_messages=1) as transactions:
        while len(states) < 6:
            transaction = transactions.receive(5)
            assert transaction is not None
            with transaction as tx:
                tx.connection.execute(f"create table {table} (id text)", prepare=True)
                tx.connection.execute(f"drop table {table}")
                if len(states) % 2:
                    tx.connection.execute("deallocate all", prepare=False)
            states.append(transaction.state)
    assert states == ["committed"] * 6


@contextmanager
def held_elsewhere(url: str, id: str) -> Iterator[Callable[[], None]]:
    """Another transaction, open all the while, is about to mark this message. Yields what gives it up."""
    with closing(psycopg.connect(url)) as other:
        other.execute("insert into brokerkit_inbox (consumer, message_id) values ('payments--ledger', %s)", (id,))
        yield other.rollback


def committed_next(transactions) -> list[str]:
    """The ids of the next transaction, which commits."""
    transaction = transactions.receive(20)
    assert transaction is not None
    with transaction as tx:
        found = [delivery.id for delivery in tx.deliveries]
    assert transaction.state == "committed"
    return found


def test_an_interrupt_while_another_has_the_same_message_leaves_nothing_open(broker, postgresql):
    once.init(postgresql.url)
    send(broker, "evt-interrupted")
    with (
        held_elsewhere(postgresql.url, "evt-interrupted") as given_up,
        broker.transactions("payments", subscription="ledger", store=postgresql.url) as transactions,
    ):
        timer = threading.Timer(1.0, _thread.interrupt_main)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            transactions.receive(20)
        timer.join()
        given_up()
        assert committed_next(transactions) == ["evt-interrupted"]


def test_a_bound_on_waiting_for_another_s_transaction_is_the_database_s_own(broker, postgresql):
    """As when a worker stands still in its transaction, and another one has its message."""
    once.init(postgresql.url)
    send(broker, "evt-waited-for")
    bounded = f"{postgresql.url}?options=-clock_timeout%3D100ms"
    with (
        held_elsewhere(postgresql.url, "evt-waited-for") as given_up,
        broker.transactions("payments", subscription="ledger", store=bounded) as transactions,
    ):
        began = time.monotonic()
        assert transactions.receive(1.0) is None
        assert time.monotonic() - began < 5
        given_up()
        assert committed_next(transactions) == ["evt-waited-for"]


def test_a_commit_whose_answer_is_lost_is_acked_only_when_the_inbox_knows_it(broker, postgresql, events):
    once.init(postgresql.url)
    table = postgresql.name("lost").replace("-", "_")
    with closing(psycopg.connect(postgresql.url, autocommit=True)) as db, relay(postgresql.url) as wire:
        db.execute(f"create table {table} (id text)")
        sent = send(broker, *(f"evt-{number}" for number in range(30)))
        with broker.transactions("payments", subscription="ledger", store=wire.url, max_messages=10) as transactions:
            wire.swallow = 1
            states = []

            def once_more() -> bool:
                transaction = transactions.receive(0.2)
                if transaction is not None:
                    with transaction as tx:
                        for delivery in tx.deliveries:
                            tx.connection.execute(f"insert into {table} values (%s)", (delivery.id,))
                    states.append(transaction.state)
                    if transaction.state == "unknown":
                        assert broker.depth("payments", "ledger") == 30
                return broker.depth("payments", "ledger") == 0

            assert within(30, once_more)
        assert wire.swallowed == 1
        assert states == ["unknown", "committed", "committed"], "the first batch was seen, and ran no second time"
        assert sorted(row[0] for row in db.execute(f"select id from {table}").fetchall()) == sent
    assert EventKind.RECONNECTED in {event.kind for event in events}


def test_a_store_that_is_killed_and_comes_back_loses_and_doubles_nothing(broker, events):
    sent = send(broker, *(f"evt-{number}" for number in range(400)))
    with temporary_directory() as directory:
        server = target("postgresql")
        try:
            server.start(directory)
            once.init(server.url())
            with closing(psycopg.connect(server.url(), autocommit=True)) as db:
                db.execute("create table charges (id text)")
            stop = threading.Event()
            failures: list[BaseException] = []

            def worker() -> None:
                try:
                    with broker.transactions(
                        "payments", subscription="ledger", store=server.url(), max_messages=10, timeout=0.2
                    ) as transactions:
                        while not stop.is_set():
                            transaction = transactions.receive()
                            if transaction is not None:
                                with transaction as tx:
                                    for delivery in tx.deliveries:
                                        charge(tx, delivery.id)
                                        time.sleep(0.002)
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=worker) for _ in range(2)]
            for thread in threads:
                thread.start()
            try:
                for _ in range(2):
                    time.sleep(0.3)  # into the work
                    server.kill()
                    server.restart()
                assert within(60, lambda: broker.depth("payments", "ledger") == 0 or bool(failures))
            finally:
                stop.set()
                for thread in threads:
                    thread.join(30)
            assert failures == []
            assert any(event.kind is EventKind.DISCONNECTED and "store" in event.detail for event in events)
            with closing(psycopg.connect(server.url())) as db:
                assert sorted(row[0] for row in db.execute("select id from charges").fetchall()) == sent
        finally:
            server.stop()


def killed(queue: str, topic: str, store: str, where: str, count: int) -> int:
    program = str(Path(__file__).with_name("worker.py"))
    done = subprocess.run([sys.executable, program, queue, topic, store, where, str(count)], timeout=100)
    return done.returncode


@pytest.mark.parametrize("where", ["before the commit", "before the ack"])
def test_a_killed_worker_loses_and_doubles_nothing(broker, queue, url, charges, where):
    sent = send(broker, *(f"evt-{number}" for number in range(60)))
    assert killed(queue, "payments", url, where, 40) == -signal.SIGKILL
    done = len(charges())
    assert done == 20
    if where == "before the ack":
        assert broker.depth("payments", "ledger") == 60
    with broker.transactions("payments", subscription="ledger", store=url) as transactions:
        work(transactions, lambda: broker.depth("payments", "ledger") == 0)
    assert charges() == sent


@pytest.mark.parametrize("name", ["rabbitmq", "kafka"])
def test_on_other_brokers_a_killed_worker_and_a_producer_that_repeats_itself_double_nothing(
    request, name, url, charges
):
    """Copies of one id in one batch, and in different ones."""
    server: TestBroker = request.getfixturevalue(name)
    topic = server.name("payments")
    with brokerkit.connect(server.url) as broker:
        broker.declare(topic, subscriptions=["ledger"])
        sent = sorted(f"evt-{number}" for number in range(60))
        send(broker, *(id for id in sent for _ in range(2)), *sent, topic=topic)
        assert killed(server.url, topic, url, "before the ack", 60) == -signal.SIGKILL
        assert 0 < len(charges()) < 60
        assert killed(server.url, topic, url, "never", 60) == 0
        assert broker.depth(topic, "ledger") == 0
    assert charges() == sent


def test_two_workers_book_each_message_once(broker, url, charges):
    sent = send(broker, *(f"evt-{number}" for number in range(200)))
    failures: list[BaseException] = []

    def worker() -> None:
        try:
            with broker.transactions("payments", subscription="ledger", store=url, max_messages=7) as transactions:
                work(transactions, lambda: broker.depth("payments", "ledger") == 0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=worker) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert charges() == sent


def test_stop_ends_the_iteration_and_what_is_in_hand_is_still_committed(broker, url, charges):
    send(broker, "a")
    with broker.transactions("payments", subscription="ledger", store=url) as transactions:
        later = threading.Timer(1.0, transactions.stop)
        for transaction in transactions:
            later.start()
            with transaction as tx:
                later.join(10)
                charge(tx, "a")
    assert charges() == ["a"]
    assert broker.depth("payments", "ledger") == 0


def test_max_seconds_waits_for_more(broker, url, charges):
    def later() -> None:
        time.sleep(0.02)
        send(broker, "b")

    send(broker, "a")
    thread = threading.Thread(target=later)
    with broker.transactions("payments", subscription="ledger", store=url, max_seconds=5.0) as transactions:
        thread.start()
        transaction = transactions.receive(10)
        assert transaction is not None
        thread.join(10)
        with transaction as tx:
            assert 1 <= len(tx.deliveries) <= 2


def test_what_it_cannot_is_refused_with_what_to_do(broker, url, charges):
    send(broker, "a")
    with broker.transactions("payments", subscription="ledger", store=url) as transactions:
        transaction = transactions.receive(10)
        assert transaction is not None
        with pytest.raises(ConfigurationError, match="is not open"):
            _ = transaction.connection
        with pytest.raises(ConfigurationError, match="is not open"):
            transaction.send("receipts", b"50")
        with pytest.raises(ConfigurationError, match="is not over"):
            transactions.receive(0)
        with transaction as tx:
            with pytest.raises(ConfigurationError, match="NUL"):
                tx.send("receipts", b"50", key="a\0b")
            with pytest.raises(ConfigurationError, match="do not nest"):
                tx.__enter__()
        with pytest.raises(Closed, match="committed"):
            transaction.__enter__()
    with pytest.raises(Closed):
        transactions.receive(0)
    with pytest.raises(ConfigurationError, match="fences by its inbox"):
        broker.transactions("payments", subscription="ledger", store=url, instance="one")
    with brokerkit.connect("memory://no-dead-letters") as mortal:
        mortal.declare("payments", subscriptions=["ledger"])
        with pytest.raises(ConfigurationError, match=r"has none: declare it with attempts="):
            mortal.transactions("payments", subscription="ledger", store=url, on_error=Retry())
        with mortal.transactions("payments", subscription="ledger", store=url) as transactions:
            assert transactions.receive(0) is None


def test_a_store_without_tables_or_out_of_reach_is_told_at_once_and_nothing_stays_open(broker, tmp_path):
    send(broker, "a")
    empty = tmp_path / "empty.db"
    empty.touch()
    with pytest.raises(NotFound, match="once init"):
        broker.transactions("payments", subscription="ledger", store=f"sqlite:///{empty}")
    with pytest.raises(ConnectionLost, match="cannot be reached"):
        broker.transactions("payments", subscription="ledger", store="postgresql://127.0.0.1:9/books")
    with broker.consumer("payments", subscription="ledger") as consumer:
        assert [delivery.id for delivery in consumer.receive(10, timeout=10)] == ["a"]


def test_tables_that_vanish_are_told_and_the_messages_go_back(broker, url, charges):
    with broker.transactions("payments", subscription="ledger", store=url) as transactions:
        with closing(connect(url)) as db:
            db.execute("drop table brokerkit_inbox")
            db.commit()
        send(broker, "a")
        with pytest.raises(NotFound, match="once init"):
            transactions.receive(10)
    assert broker.depth("payments", "ledger") == 1
