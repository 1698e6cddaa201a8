"""Seven mistakes and their cures, each with the same faults: processes really killed or stopped, and the books read."""

from __future__ import annotations

import select
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import brokerkit
from brokerkit import once
from brokerkit_conformance.demo import clerk, processes
from brokerkit_conformance.demo.books import Ledger, Way, make_books, store_url

PAYMENTS = 40
LEASE_SECONDS = 0.5
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Hand(Way):
    """How the clerks of one scene work."""

    works: str = clerk.mark_and_charge_together.__name__
    window: timedelta | None = None
    """What the inbox is pruned with meanwhile."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """`wrong` and `right` go through the same: `happens` is what, `induce` does it."""

    title: str
    happens: str
    wrong: Hand
    right: Hand
    induce: Callable[[Scene], None]


class Scene:
    """Payments of $50 in a queue, books, and clerks. Leaving ends every clerk, by its id."""

    def __init__(self, hand: Hand, directory: Path) -> None:
        self.hand = hand
        self.queue = directory / "queue.db"
        self.file = directory / "books.db"
        self.store = store_url(self.file)
        self.ledger = Ledger(hand, PAYMENTS)
        self.url = f"{store_url(self.queue)}?lease_seconds={LEASE_SECONDS}"
        self.broker = brokerkit.connect(self.url)
        self.broker.declare("payments", subscriptions=["ledger"])
        self.broker.declare("receipts", subscriptions=["mail"])
        self.books = make_books(self.file)
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._clerks: list[subprocess.Popen[str]] = []

    def payments(self) -> list[brokerkit.Message]:
        return [brokerkit.Message(b'{"charge": 50}', id=f"payment-{number}") for number in range(PAYMENTS)]

    def send(self) -> None:
        with self.broker.producer("payments") as producer:
            receipts = producer.send_many(self.payments())
            producer.flush(_PATIENCE)
        self.ledger.sent = sum(receipt.state == "confirmed" for receipt in receipts)

    def clerk(self, works: str, moment: str = "") -> subprocess.Popen[str]:
        """Starts one; it stands still at its first such moment."""
        pipe = subprocess.PIPE
        arguments = (works, self.url, str(self.file), moment)
        started = processes.start(clerk.__name__, *arguments, stdin=pipe, stdout=pipe, stderr=self._said)
        self._clerks.append(started)
        return started

    def at(self, works: str, moment: str) -> subprocess.Popen[str]:
        """A clerk that stands there. Raises TimeoutError."""
        started = self.clerk(works, moment)
        assert started.stdout is not None
        if not select.select([started.stdout], [], [], _PATIENCE)[0] or started.stdout.readline().strip() != moment:
            raise TimeoutError(f"{works} did not come to {moment!r}: {self.said()}")
        return started

    def kill(self, clerk: subprocess.Popen[str]) -> None:
        processes.kill(clerk)
        self.ledger.killed += 1

    def finish(self, works: str | None = None) -> None:
        """One more clerk, which is not disturbed, does what is left. Raises TimeoutError."""
        self.ended(self.clerk(works or self.hand.works))

    def ended(self, clerk: subprocess.Popen[str]) -> None:
        try:
            status = clerk.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"a clerk has not ended within {_PATIENCE:g} s: {self.said()}") from None
        if status:
            raise TimeoutError(f"a clerk ended with status {status}: {self.said()}")

    def said(self) -> str:
        self._said.seek(0)
        return self._said.read().strip() or "it said nothing"

    @contextmanager
    def busy_broker(self) -> Iterator[None]:
        """Somebody writes to the queue's file all the time: the broker takes messages, and confirms none."""
        with closing(sqlite3.connect(self.queue, timeout=_PATIENCE, isolation_level=None)) as db:
            db.execute("begin immediate")
            yield

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes.end(self._clerks)
        for each in self._clerks:
            for pipe in (each.stdin, each.stdout):
                if pipe is not None:
                    pipe.close()
        self.books.close()
        self.broker.close()
        self._said.close()


def _killed_at(moment: str) -> Callable[[Scene], None]:
    def induce(scene: Scene) -> None:
        scene.send()
        for _ in range(2):
            scene.kill(scene.at(scene.hand.works, moment))
        scene.finish()

    return induce


def _frozen(scene: Scene) -> None:
    scene.send()
    first = scene.at(scene.hand.works, "received")
    first.send_signal(signal.SIGSTOP)
    scene.finish()  # when the lease of the first is over
    first.send_signal(signal.SIGCONT)
    assert first.stdin is not None
    first.stdin.write("\n")
    first.stdin.flush()
    scene.ended(first)


def _pruned(scene: Scene) -> None:
    scene.send()
    scene.kill(scene.at(scene.hand.works, "charged"))
    assert scene.hand.window is not None
    time.sleep(1.05)  # the store counts in whole seconds
    once.prune(scene.store, scene.hand.window, anyway=True)
    scene.finish()


def _relay_killed(scene: Scene) -> None:
    scene.books.execute("begin immediate")
    scene.ledger.sent = len(once.Outbox(scene.store).send_many(scene.books, "payments", scene.payments()))
    scene.books.execute("commit")
    with scene.busy_broker():
        scene.kill(scene.at(scene.hand.works, "sent"))
    scene.finish()
    scene.finish(clerk.mark_and_charge_together.__name__)


_RIGHT = Hand("mark and charge together, then ack")

MISTAKES = (
    Mistake(
        "trusting the broker end to end",
        "killed after the charge, before the broker hears of it",
        Hand("the broker's transaction around it", doubles=True, works=clerk.trusting_the_broker.__name__),
        _RIGHT,
        _killed_at("charged"),
    ),
    Mistake(
        "acking on receive",
        "killed with payments in hand",
        Hand("ack, then charge", loses=True, works=clerk.acking_on_receive.__name__),
        _RIGHT,
        _killed_at("received"),
    ),
    Mistake(
        "a rebalance without idempotent effects",
        "stopped with payments in hand, another gets them, and it goes on",
        Hand("charge, then ack", doubles=True, works=clerk.charging_whatever_comes.__name__),
        _RIGHT,
        _frozen,
    ),
    Mistake(
        "dedup in memory",
        "killed after the charge, and started again",
        Hand("a set of the ids seen", doubles=True, works=clerk.dedup_in_memory.__name__),
        _RIGHT,
        _killed_at("charged"),
    ),
    Mistake(
        "the mark in another transaction",
        "killed between the mark and the charge",
        Hand("mark, commit, charge, commit", loses=True, works=clerk.mark_in_another_transaction.__name__),
        _RIGHT,
        _killed_at("marked"),
    ),
    Mistake(
        "pruning too early",
        "killed after the charge, the inbox pruned before the payments come again",
        Hand("a window shorter than the broker's", doubles=True, window=timedelta(seconds=0)),
        Hand("a window longer than the broker's", window=timedelta(days=14)),
        _pruned,
    ),
    Mistake(
        "marking the outbox before the confirm",
        "the broker is busy, and the relay is killed while it waits",
        Hand("send, delete", loses=True, works=clerk.deleting_before_the_confirm.__name__),
        Hand("send, wait for the confirm, delete", works=clerk.deleting_after_the_confirm.__name__),
        _relay_killed,
    ),
)


@dataclass(frozen=True, slots=True)
class Played:
    mistake: Mistake
    wrong: Ledger
    right: Ledger

    @property
    def shown(self) -> bool:
        """The mistake cost money, as it is said to, and the cure cost none."""
        cost = self.wrong.as_promised and self.wrong.outcome != "exact"
        return cost and self.right.outcome == "exact" and self.wrong.finished and self.right.finished


def play(mistake: Mistake, directory: Path) -> Played:
    """Both ways at the same time, each with a queue and books of its own. Raises TimeoutError, with what a clerk
    said."""
    with ThreadPoolExecutor(2) as both:
        wrong, right = both.map(lambda hand: _played(mistake, hand, directory), (mistake.wrong, mistake.right))
    return Played(mistake, wrong, right)


def _played(mistake: Mistake, hand: Hand, directory: Path) -> Ledger:
    began = time.monotonic()
    place = directory / ("wrong" if hand is mistake.wrong else "right")
    place.mkdir()
    with Scene(hand, place) as scene:
        mistake.induce(scene)
        scene.ledger.audit(scene.books)
        scene.ledger.finished = scene.broker.depth("payments", "ledger") == 0
        scene.ledger.seconds = time.monotonic() - began
        return scene.ledger
