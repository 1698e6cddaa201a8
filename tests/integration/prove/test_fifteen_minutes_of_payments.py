"""A thousand payments a second for fifteen minutes, and every ten seconds something is killed: each is charged once.

Two workers charge in PostgreSQL; by the seed one of them, the broker or the database gets SIGKILL and is started again.
One payment in a hundred is sent twice by the producer too. The ledger is rows, their sum and what stands on the
accounts, and the producer's own books say what all of them have to be, to the dollar. The same program without the
inbox, for a fifteenth of the time and with only workers killed, is seen charging too much.

BROKERKIT_PROVE_SECONDS is how long, BROKERKIT_PROVE_SEED repeats the faults. The last lines say what happened.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from brokerkit_conformance.targets import Target, understand

import brokerkit
from brokerkit import once
from brokerkit.local.contract import LocalBroker
from brokerkit.local.keeper import temporary_directory
from brokerkit.local.targets import target as store_target

from .workers import Workers, told, until

SECONDS = float(os.environ.get("BROKERKIT_PROVE_SECONDS", "900"))
SEED = int(os.environ.get("BROKERKIT_PROVE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
RATE = 1000
EVERY = 10.0
ACCOUNTS = 100
SLOTS = ("worker-1", "worker-2")
_TABLES = f"""\
create table charges (
    message_id text not null, account integer not null, dollars integer not null, published_at bigint not null,
    charged_at timestamptz not null default clock_timestamp());
create table accounts (id integer primary key, balance bigint not null);
insert into accounts select id, 0 from generate_series(0, {ACCOUNTS - 1}) as id"""

pytestmark = [pytest.mark.prove, pytest.mark.integration, pytest.mark.timeout(SECONDS + 900)]


class Till:
    """Sends numbered payments at the rate, and again what was not confirmed, until told to stop."""

    def __init__(self, broker: brokerkit.Broker, topic: str) -> None:
        self.sent = 0
        self.again = 0
        self._unsettled: deque[int] = deque()
        self._producer = broker.producer(topic, delivery_timeout=60.0, full_timeout=60.0)
        self._stopping = threading.Event()
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def dollars(self) -> int:
        return sum(dollars(number) for number in range(self.sent))

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(200)
        assert not self._thread.is_alive()
        assert self._failures == []

    def _run(self) -> None:
        try:
            began = time.monotonic()
            while not self._stopping.is_set():
                for number in range(self.sent, int((time.monotonic() - began) * RATE)):
                    self._send(number)
                    self.sent = number + 1
                    if number % 100 == 7:
                        self._send(number)
                self._send_again()
                time.sleep(0.01)
            while self._producer.flush(120) or self._unsettled:
                self._send_again()
            assert self._producer.close() == 0
        except BaseException as error:
            self._failures.append(error)

    def _send(self, number: int) -> None:
        account = number % ACCOUNTS
        body = b"[%d, %d]" % (account, dollars(number))
        self._producer.send(body, id=f"evt-{number}", key=f"account-{account}", on_end=self._ended)

    def _ended(self, receipt: brokerkit.Receipt) -> None:
        if receipt.state != "confirmed":
            self._unsettled.append(int(receipt.id[4:]))

    def _send_again(self) -> None:
        while self._unsettled:
            self._send(self._unsettled.popleft())
            self.again += 1


def dollars(number: int) -> int:
    return 1 + number % 97


@pytest.fixture
def store() -> Iterator[LocalBroker]:
    server = store_target("postgresql")
    with temporary_directory("brokerkit-test-") as folder:
        try:
            server.start(folder)
            once.init(server.url())
            with closing(psycopg.connect(server.url())) as db:
                db.execute(_TABLES)
                db.commit()
            yield server
        finally:
            server.stop()


@pytest.mark.parametrize("how", ["inbox", "no_inbox"])
@pytest.mark.parametrize("name", ["rabbitmq", "kafka"])
def test_every_payment_is_charged_once_whatever_dies(name: str, how: str, store: LocalBroker, tmp_path: Path) -> None:
    seconds = SECONDS if how == "inbox" else SECONDS / 15
    chance = random.Random(SEED)
    with ExitStack() as stack:
        running = stack.enter_context(Target(understand(name)))
        assert running.local is not None
        url = running.url()
        broker = stack.enter_context(brokerkit.connect(url))
        broker.declare("payments", ["ledger"])

        def start(slot: str) -> subprocess.Popen[bytes]:
            arguments = [str(Path(__file__).with_name("cashier.py")), url, "payments", store.url(), how]
            with (tmp_path / f"{slot}.log").open("ab") as log:
                return subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log)

        workers = Workers(start)
        stack.callback(workers.end)
        for slot in SLOTS:
            workers.begin(slot)
        began = time.monotonic()
        till = Till(broker, "payments")
        while (passed := time.monotonic() - began) < seconds - EVERY:
            time.sleep(EVERY - passed % EVERY)
            whom = chance.choice([*SLOTS, "broker", "database"]) if how == "inbox" else chance.choice(SLOTS)
            if whom in SLOTS:
                workers.kill(whom)
                continue
            victim = running.local if whom == "broker" else store
            victim.kill()
            victim.restart()
            workers.faults.append(f"killed {whom}")
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        till.stop()
        took = time.monotonic() - began
        until(lambda: broker.depth("payments", "ledger") == 0, 120.0, lambda: f"{ledger(store)} of {till.sent}")
        for slot in SLOTS:
            workers.leave(slot)
        drained = time.monotonic() - began
        found = ledger(store)
    print(f"{name}, {how}: seed {SEED}, {till.sent} payments of ${till.dollars:,}, {till.again} of them sent again as")
    print(f"unconfirmed; all charged after {drained:.0f} s: {found}")
    told(workers.faults, took)
    assert till.sent >= 0.95 * RATE * seconds
    assert found["payments"] == till.sent
    if how == "inbox":
        assert found["rows"] == till.sent
        assert found["charged"] == found["balances"] == till.dollars
    else:
        assert found["charged"] > till.dollars, "without the inbox it has to be seen charging too much"


def ledger(store: LocalBroker) -> dict[str, Any]:
    """Its sums, and how long after a payment was sent it was charged, in milliseconds."""
    with closing(psycopg.connect(store.url())) as db:
        rows, payments, charged = db.execute(
            "select count(*), count(distinct message_id), coalesce(sum(dollars), 0) from charges"
        ).fetchone()  # type: ignore[misc]
        [balances] = db.execute("select sum(balance) from accounts").fetchone()  # type: ignore[misc]
        [late] = db.execute(
            "select percentile_disc(array[0.5, 0.99, 1]) within group (order by "
            "(extract(epoch from charged_at) * 1000)::bigint - published_at) from charges"
        ).fetchone()  # type: ignore[misc]
    return {
        "rows": rows,
        "payments": payments,
        "charged": int(charged),
        "balances": int(balances),
        "ms after it was sent (p50, p99, most)": late,
    }
