"""Stores that these tests may kill, and what runs of them."""

from __future__ import annotations

import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest

import brokerkit
from brokerkit import once
from brokerkit.local.contract import LocalBroker
from brokerkit.local.fixtures import TestBroker
from brokerkit.local.keeper import temporary_directory
from brokerkit.local.targets import target

TARGETS = ["postgresql", "postgresql:18", "valkey"]


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def family(pid: int) -> list[psutil.Process]:
    """A server's process and its children."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)


class Postgresql:
    """A table, by psycopg."""

    def __init__(self, url: str) -> None:
        self.url = url

    def answers(self, seconds: float) -> bool:
        try:
            parts = urlsplit(self.url)
            # A paused postmaster's socket still takes connections: the wait for the answer is bounded by hand.
            with socket.create_connection((parts.hostname, parts.port), seconds) as connection:
                connection.settimeout(seconds)
                connection.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")  # SSLRequest
                return connection.recv(1) in (b"N", b"S")
        except OSError:
            return False

    def write(self, count: int) -> None:
        with closing(psycopg.connect(self.url, autocommit=True)) as db:
            db.execute("create table if not exists kept (number integer)")
            for number in range(count):
                db.execute("insert into kept values (%s)", (number,))

    def read(self) -> int:
        with closing(psycopg.connect(self.url)) as db:
            return int(db.execute("select count(*) from kept").fetchone()[0])


class Valkey:
    """Keys, by the wire."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.address = parts.hostname, parts.port

    def answers(self, seconds: float) -> bool:
        try:
            with socket.create_connection(self.address, seconds) as connection:
                connection.settimeout(seconds)
                connection.sendall(b"PING\r\n")
                return connection.recv(16) == b"+PONG\r\n"
        except OSError:
            return False

    def write(self, count: int) -> None:
        with socket.create_connection(self.address, 5) as connection:
            for number in range(count):
                connection.sendall(f"SET kept-{number} 1\r\n".encode())
                assert connection.recv(16) == b"+OK\r\n"

    def read(self) -> int:
        with socket.create_connection(self.address, 5) as connection:
            connection.sendall(b"DBSIZE\r\n")
            return int(connection.recv(32)[1:])


def client(target: str, url: str) -> Postgresql | Valkey:
    return Postgresql(url) if target.startswith("postgresql") else Valkey(url)


@pytest.fixture(params=TARGETS)
def local(request: pytest.FixtureRequest) -> Iterator[LocalBroker]:
    """A store that is not started."""
    made = target(request.param)
    made.provision()
    yield made
    made.stop()


@pytest.fixture
def started(local: LocalBroker) -> Iterator[LocalBroker]:
    with temporary_directory() as directory:
        local.start(directory)
        yield local
        local.stop()


@pytest.fixture(params=["postgresql", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with tables(request, request.param, tmp_path) as made:
        yield made


@contextmanager
def tables(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[str]:
    """A file or schema of this test's own, with the tables."""
    if kind == "sqlite":
        made = f"sqlite:///{tmp_path / 'store.db'}"
        once.init(made)
        yield made
        return
    server: TestBroker = request.getfixturevalue("postgresql")
    name = server.name("once").replace("-", "_")
    with closing(psycopg.connect(server.url, autocommit=True)) as db:
        db.execute(f"create schema {name}")
        made = f"{server.url}?options=-csearch_path%3D{name}"
        once.init(made)
        yield made
        db.execute(f"drop schema {name} cascade")


def connect(url: str) -> Any:
    """A connection of the user's own."""
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///"), timeout=10, check_same_thread=False)
    return psycopg.connect(url)


@pytest.fixture
def queue(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'queue.db'}?lease_seconds=2"


@pytest.fixture
def events() -> list[Any]:
    return []


@pytest.fixture
def broker(queue: str, events: list[Any]) -> Iterator[brokerkit.Broker]:
    with brokerkit.connect(queue, on_event=events.append) as made:
        made.declare("payments", subscriptions=["ledger"], attempts=5)
        made.declare("receipts", subscriptions=["mail"])
        yield made
