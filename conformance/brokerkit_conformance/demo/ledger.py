"""A thousand payments of $50, charged by consumers that are killed while they work; then the ledger is read."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import brokerkit
from brokerkit_conformance.demo import processes
from brokerkit_conformance.demo.books import Ledger, Way, make_books, store_url

CONSUMERS = 2
LEASE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Consuming(Way):
    """One way to consume: the guarantee asked for, and whether the handler remembers ids."""

    guarantee: str = "at_least_once"
    dedup: bool = False


WAYS = (
    Consuming("at most once", loses=True, guarantee="at_most_once"),
    Consuming("at least once", doubles=True),
    Consuming("at least once, dedup by id", dedup=True),
)


def charge_all(
    way: Consuming,
    directory: Path,
    *,
    payments: int = 1000,
    kills: int = 25,
    seed: int = 0,
    watch: Callable[[Ledger], None] = lambda _: None,
    timeout: float = 60.0,
) -> Ledger:
    """Sends the payments, and has them charged by processes of which `kills` are killed with SIGKILL, at work."""
    url = f"{store_url(directory / 'queue.db')}?lease_seconds={LEASE_SECONDS}"
    file = directory / "ledger.db"
    books = make_books(file)
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
    ledger.audit(books)
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
        self._arguments = arguments
        self._at_work: dict[int, subprocess.Popen[str]] = {}

    def hire(self) -> None:
        for pid, process in list(self._at_work.items()):
            if process.poll() is not None:
                del self._at_work[pid]
        while len(self._at_work) < CONSUMERS:
            process = processes.start(f"{__package__}.consumer", *self._arguments)
            self._at_work[process.pid] = process

    def kill(self, pid: int) -> bool:
        """SIGKILL; False when that one is dead already."""
        process = self._at_work.pop(pid, None)
        if process is None:
            return False
        processes.kill(process)
        return True

    def __enter__(self) -> _Staff:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes.end(self._at_work.values())
