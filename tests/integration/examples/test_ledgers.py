"""The worker in SQLAlchemy's transaction and the one in Django's charge once, on PostgreSQL and on SQLite."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

import brokerkit
from brokerkit.local.fixtures import TestBroker

EXAMPLES = Path(__file__).parents[3] / "examples"
COUNT = 40

pytestmark = pytest.mark.integration


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database, or schema, of this test's own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'books.db'}"
        return
    server: TestBroker = request.getfixturevalue("postgresql")
    name = server.name("books").replace("-", "_")
    with closing(psycopg.connect(server.url, autocommit=True)) as db:
        db.execute(f"create schema {name}")
        yield f"{server.url}?options=-csearch_path%3D{name}"
        db.execute(f"drop schema {name} cascade")


class Example:
    """One of the two programs, with the tables that it makes."""

    accounts: str
    charges: str

    def __init__(self, database: str, queue: str) -> None:
        self.database = database
        self.queue = queue
        self.prepare()

    def prepare(self) -> None:
        """Makes the tables."""
        raise NotImplementedError

    def worker(self) -> list[str]:
        raise NotImplementedError

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "DATABASE_URL": self.database, "PYTHONDONTWRITEBYTECODE": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*(arguments or self.worker()))
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait(10)
        return process.returncode, said

    def connect(self) -> Any:
        if self.database.startswith("sqlite"):
            return sqlite3.connect(self.database.removeprefix("sqlite:///"), timeout=30)
        return psycopg.connect(self.database)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(self.connect()) as db:
            found = db.execute(statement)
            rows = found.fetchall() if found.description else []
            db.commit()
            return rows

    @contextmanager
    def busy(self) -> Iterator[Any]:
        """A connection on whose end every charge waits."""
        with closing(self.connect()) as db:
            db.execute(
                "begin immediate"
                if self.database.startswith("sqlite")
                else f"lock table {self.charges} in exclusive mode"
            )
            yield db


class WithSqlalchemy(Example):
    accounts, charges = "accounts", "charges"

    def prepare(self) -> None:
        with brokerkit.connect(self.queue) as broker:
            broker.declare("payments", subscriptions=["ledger"])
        assert self.run(*self.worker()) == (0, "")

    def worker(self) -> list[str]:
        database = self.database.replace("postgresql:", "postgresql+psycopg:")
        return [str(EXAMPLES / "sqlalchemy_ledger.py"), self.queue, database, "--patience", "1"]


class WithDjango(Example):
    accounts, charges = "ledger_account", "ledger_charge"

    def prepare(self) -> None:
        assert self.run(str(EXAMPLES / "django_ledger" / "manage.py"), "migrate", "--verbosity", "0") == (0, "")

    def worker(self) -> list[str]:
        return [str(EXAMPLES / "django_ledger" / "manage.py"), "charge", self.queue, "--patience", "1"]


@pytest.fixture(params=[WithSqlalchemy, WithDjango])
def example(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Example:
    return request.param(database, f"sqlite:///{tmp_path / 'queue.db'}?lease_seconds=0.5")


def send(broker: brokerkit.Broker, accounts: list[str]) -> None:
    """Payments of $1, $2, … to these accounts in turn; each twice."""
    with broker.producer("payments") as producer:
        for _ in range(2):
            for number in range(COUNT):
                body = json.dumps({"charge": number + 1}).encode()
                producer.send(body, id=f"payment-{number}", key=accounts[number % len(accounts)])
        assert producer.flush(30) == 0
    assert broker.depth("payments", "ledger") == 2 * COUNT


def wait(worker: subprocess.Popen[str], condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert worker.poll() is None, worker.communicate()
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def assert_each_is_charged_once(example: Example) -> None:
    assert sorted(example.sql(f"select payment, dollars from {example.charges}")) == sorted(
        (f"payment-{number}", number + 1) for number in range(COUNT)
    )
    [(balances,)] = example.sql(f"select sum(balance) from {example.accounts}")
    assert balances == -sum(range(1, COUNT + 1))
    assert example.sql("select count(*) from brokerkit_inbox") == [(COUNT,)]


def test_a_charge_that_fails_takes_the_marks_along_and_nothing_is_charged_twice(example: Example):
    example.sql(f"insert into {example.accounts} (name, balance) values ('alice', 0)")
    with brokerkit.connect(example.queue) as broker:
        broker.declare("payments", subscriptions=["ledger"])
        send(broker, ["alice", "bob"])
        status, said = example.run()
        assert status != 0, "there is no account for bob"
        assert any(words in said for words in ("NoResultFound", "DoesNotExist")), said
        assert example.sql(f"select count(*) from {example.charges}") == [(0,)]
        assert example.sql("select count(*) from brokerkit_inbox") == [(0,)]
        example.sql(f"insert into {example.accounts} (name, balance) values ('bob', 0)")
        assert example.run() == (0, "")
        assert broker.depth("payments", "ledger") == 0
    assert_each_is_charged_once(example)


def test_a_worker_that_is_killed_with_its_charges_committed_charges_nothing_twice(example: Example):
    example.sql(f"insert into {example.accounts} (name, balance) values ('alice', 0)")
    with brokerkit.connect(example.queue) as broker:
        broker.declare("payments", subscriptions=["ledger"])
        send(broker, ["alice"])
        queue = sqlite3.connect(example.queue.partition("?")[0].removeprefix("sqlite:///"), timeout=30)
        with closing(queue), example.busy() as books:
            worker = example.start(*example.worker())
            try:
                wait(worker, lambda: queue.execute("select 1 from deliveries where lease is not null").fetchall())
                queue.execute("begin immediate")  # no ack gets in
                books.rollback()  # the charges do
                wait(worker, lambda: example.sql(f"select 1 from {example.charges}"))
            finally:
                worker.kill()
                worker.communicate(timeout=10)
        assert len(example.sql(f"select 1 from {example.charges}")) == COUNT
        assert broker.depth("payments", "ledger") == 2 * COUNT, "something was acked"
        assert example.run() == (0, "")
        assert broker.depth("payments", "ledger") == 0
    assert_each_is_charged_once(example)
