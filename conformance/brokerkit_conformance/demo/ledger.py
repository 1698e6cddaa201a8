"""A thousand payments of $50, charged by consumers that are killed while they work; then the ledger is read."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import brokerkit
from brokerkit.local.keeper import keeper

DOLLARS = 50
CONSUMERS = 2
LEASE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Way:
    """One way to consume: the guarantee asked for, and whether the handler remembers ids."""

    title: str
    guarantee: str
    dedup: bool = False


WAYS = (
    Way("at most once", "at_most_once"),
    Way("at least once", "at_least_once"),
    Way("at least once, dedup by id", "at_least_once", dedup=True),
)


@dataclass(slots=True)
class Ledger:
    """What is in the books, against what ought to be."""

    way: Way
    payments: int
    sent: int = 0
    killed: int = 0
    charged: int = 0
    never: int = 0
    again: int = 0
    seconds: float = 0.0
    finished: bool = False

    @property
    def dollars(self) -> int:
        return self.charged * DOLLARS

    @property
    def ought(self) -> int:
        return self.payments * DOLLARS

    @property
    def outcome(self) -> str:
        """`lost money`, `doubled money`, `lost and doubled money` or `exact`."""
        words = [word for word, some in (("lost", self.never), ("doubled", self.again)) if some]
        return f"{' and '.join(words)} money" if words else "exact"

    @property
    def as_promised(self) -> bool:
        """At most once nothing may double, at least once nothing may be lost, and with dedup neither."""
        if self.way.guarantee == "at_most_once":
            return not self.again
        return not self.never and not (self.way.dedup and self.again)


def charge_all(
    way: Way,
    directory: Path,
    *,
    payments: int = 1000,
    kills: int = 25,
    seed: int = 0,
    watch: Callable[[Ledger], None] = lambda _: None,
    timeout: float = 60.0,
) -> Ledger:
    """Sends the payments, and has them charged by processes of which `kills` are killed with SIGKILL, at work."""
    url = f"sqlite:///{quote(str(directory / 'queue.db'))}?lease_seconds={LEASE_SECONDS}"
    file = directory / "ledger.db"
    books = _books(file)
    ledger = Ledger(way, payments)
    began = time.monotonic()
    with brokerkit.connect(url) as broker:
        broker.declare("payments", subscriptions=["ledger"])
        with broker.producer("payments") as producer:
            receipts = producer.send_many(
                brokerkit.Message(b'{"charge": 50}', id=f"payment-{number}") for number in range(payments)
            )
            producer.flush(timeout)
        ledger.sent = sum(receipt.state == "confirmed" for receipt in receipts)
        watch(ledger)
        with _Staff([url, str(file), way.guarantee, "dedup" if way.dedup else "-"]) as staff:
            _work(broker, books, staff, ledger, _schedule(payments, kills, seed), watch, began + timeout)
    _audit(books, ledger)
    ledger.seconds = time.monotonic() - began
    books.close()
    watch(ledger)
    return ledger


def _schedule(payments: int, kills: int, seed: int) -> list[int]:
    """At which numbers of charges somebody dies; all within the first two thirds, so that enough work is left."""
    chance = random.Random(seed)
    return sorted(chance.sample(range(10, max(11 + kills, payments * 2 // 3)), kills))


def _work(
    broker: brokerkit.Broker,
    books: sqlite3.Connection,
    staff: _Staff,
    ledger: Ledger,
    schedule: list[int],
    watch: Callable[[Ledger], None],
    deadline: float,
) -> None:
    """Until the subscription is empty: keeps consumers alive, and kills the one that charged last when it is time."""
    look = 0.0
    while time.monotonic() < deadline:
        staff.hire()
        row = books.execute("select rowid, process from charges order by rowid desc limit 1").fetchone()
        ledger.charged, last = row or (0, 0)
        if schedule and ledger.charged >= schedule[0] and staff.kill(last):
            schedule.pop(0)
            ledger.killed += 1
            watch(ledger)
        if time.monotonic() >= look:
            look = time.monotonic() + 0.1
            watch(ledger)
            if broker.depth("payments", "ledger") == 0:
                ledger.finished = True
                return
        time.sleep(0.002)


class _Staff:
    """The consumers. Leaving ends every one of them, by its id."""

    def __init__(self, arguments: list[str]) -> None:
        self._command = [sys.executable, "-m", f"{__package__}.consumer", *arguments]
        self._at_work: dict[int, subprocess.Popen[bytes]] = {}

    def hire(self) -> None:
        for pid, process in list(self._at_work.items()):
            if process.poll() is not None:
                del self._at_work[pid]
        while len(self._at_work) < CONSUMERS:
            # The mark: one whose parent is killed before it is up does not know whose child it was.
            environment = {**os.environ, **keeper().mark}
            process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, env=environment)
            self._at_work[process.pid] = process

    def kill(self, pid: int) -> bool:
        """SIGKILL; False when that one is dead already."""
        process = self._at_work.pop(pid, None)
        if process is None:
            return False
        os.kill(pid, signal.SIGKILL)
        process.wait(10.0)
        return True

    def __enter__(self) -> _Staff:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._at_work.values():
            process.terminate()
        for process in self._at_work.values():
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10.0)


def _books(file: Path) -> sqlite3.Connection:
    books = sqlite3.connect(file, timeout=30.0, isolation_level=None)
    books.execute("pragma journal_mode = wal")
    books.execute("create table charges (payment text, dollars integer, process integer)")
    books.execute("create table seen (payment text primary key)")
    return books


def _audit(books: sqlite3.Connection, ledger: Ledger) -> None:
    counts = [count for (count,) in books.execute("select count(*) from charges group by payment")]
    ledger.charged = sum(counts)
    ledger.again = sum(count - 1 for count in counts)
    ledger.never = ledger.sent - len(counts)
