"""The ASGI middleware under uvicorn: fifty clients that retry, a server that is killed, one charge for each key."""

from __future__ import annotations

import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from brokerkit import once
from brokerkit.local.fixtures import TestBroker

from .conftest import connect, tables, within

pytestmark = pytest.mark.integration
CLIENTS = 50
FOLDER = Path(__file__).parent


class Server:
    """uvicorn in a process, which may be killed."""

    def __init__(self, store: str, ledger: str, care: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._env = {**os.environ, "STORE": store, "LEDGER": ledger, "CARE": care}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["uvicorn", "served:app", "--app-dir", str(FOLDER), "--host", "127.0.0.1", "--port", str(self.port)]
        quiet = ["--lifespan", "off", "--log-level", "critical", "--backlog", "100"]
        self._process = subprocess.Popen([sys.executable, "-m", *words, *quiet], env=self._env)
        assert within(60, self._serves), "uvicorn does not start"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "uvicorn ended by itself"
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


class Clients:
    """Fifty threads; each sends a charge until it has an answer, and then the next. Several send the same one."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: dict[str, list[tuple[int, str | None, bytes]]] = defaultdict(list)
        self.cut = 0
        self.failures: list[BaseException] = []
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Lets each end what it has begun."""
        self._enough.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)
        assert self.failures == []

    def _run(self, number: int) -> None:
        try:
            for turn in range(1000):
                if self._enough.is_set():
                    return
                self._charge(f"charge-{turn}-{number % 10}")
        except BaseException as error:
            self.failures.append(error)

    def _charge(self, key: str) -> None:
        while True:
            try:
                answer = self._asked(key)
            except (OSError, http.client.HTTPException):
                self.cut += 1
            else:
                if answer[0] not in (409, 503):
                    self.answers[key].append(answer)
                    return
            time.sleep(random.uniform(0.05, 0.2))

    def _asked(self, key: str) -> tuple[int, str | None, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request("POST", "/charges", b"50 dollars for " + key.encode(), {"Idempotency-Key": f'"{key}"'})
            response = connection.getresponse()
            return response.status, response.getheader("location"), response.read()


@contextmanager
def fire(server: Server, kills: int) -> Iterator[Clients]:
    """Clients at work while the server is killed so many times; given when all have their answers."""
    try:
        server.start()
        clients = Clients(server.port)
        try:
            for _ in range(kills):
                time.sleep(random.uniform(1.0, 2.0))
                server.kill()
                server.start()
        finally:
            clients.finish()
        yield clients
    finally:
        server.kill()


def charged(ledger: str) -> dict[str, list[str]]:
    """The numbers of the charges, by key."""
    found: dict[str, list[str]] = defaultdict(list)
    with closing(connect(ledger)) as db:
        for key, token in db.execute("select key, token from charges").fetchall():
            found[key].append(token)
    return found


def open_ledger(url: str, unique: bool = False) -> str:
    with closing(connect(url)) as db:
        db.execute(f"create table charges (key varchar(255){' primary key' if unique else ''}, token varchar(255))")
        if url.startswith("sqlite"):
            db.execute("pragma journal_mode = wal")
        db.commit()
    return url


@pytest.fixture(params=["postgresql", "sqlite", "valkey"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    if request.param == "valkey":
        store: TestBroker = request.getfixturevalue("valkey")
        yield Server(store.url, open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", unique=True), "forward")
    else:
        with tables(request, request.param, tmp_path) as url:
            yield Server(url, open_ledger(url), "transaction")


@pytest.mark.timeout(240)
def test_one_charge_a_key_and_the_same_answer_to_every_retry(server: Server):
    with fire(server, kills=4) as clients:
        charges = charged(server._env["LEDGER"])
        assert clients.cut > 0, "no client noticed a kill"
        assert len(clients.answers) > 10
        assert charges.keys() == clients.answers.keys()
        for key, tokens in charges.items():
            [token] = tokens
            assert set(clients.answers[key]) == {(201, f"/charges/{token}", token.encode())}


@pytest.mark.timeout(240)
def test_a_service_that_forgets_the_key_charges_twice_under_the_same_fire(tmp_path: Path):
    """The mutant of the test above: what it looks at would show it."""
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    store = f"sqlite:///{tmp_path / 'keys.db'}"
    once.init(store)
    with fire(Server(store, ledger, "none"), kills=4):
        assert any(len(tokens) > 1 for tokens in charged(ledger).values())
