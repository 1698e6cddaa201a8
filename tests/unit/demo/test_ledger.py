"""The demo's ledgers say what the guarantees promise, with consumers really killed."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from brokerkit_conformance.demo.books import Ledger
from brokerkit_conformance.demo.fetch import Fetch
from brokerkit_conformance.demo.ledger import WAYS, charge_all

AT_MOST_ONCE, AT_LEAST_ONCE, DEDUP = WAYS


def charged(way, directory: Path, **more) -> Ledger:
    ledger = charge_all(way, directory, payments=300, kills=12, seed=3, **more)
    assert ledger.finished, f"not all payments were looked at within the time: {ledger}"
    assert (ledger.sent, ledger.killed) == (300, 12)
    return ledger


def test_at_most_once_loses_money_and_never_charges_twice(tmp_path: Path):
    ledger = charged(AT_MOST_ONCE, tmp_path)
    assert ledger.never > 0
    assert ledger.again == 0
    assert ledger.outcome == "lost money"
    assert ledger.dollars == ledger.ought - 50 * ledger.never


def test_at_least_once_charges_somebody_twice_and_forgets_nobody(tmp_path: Path):
    ledger = charged(AT_LEAST_ONCE, tmp_path)
    assert ledger.again > 0
    assert ledger.never == 0
    assert ledger.outcome == "doubled money"


def test_dedup_by_id_in_the_transaction_of_the_charge_is_exact(tmp_path: Path):
    ledger = charged(DEDUP, tmp_path)
    assert (ledger.never, ledger.again, ledger.outcome) == (0, 0, "exact")
    assert ledger.dollars == ledger.ought


def test_no_consumer_outlives_the_demo(tmp_path: Path):
    def interrupted(ledger: Ledger) -> None:
        if ledger.killed == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        charge_all(AT_LEAST_ONCE, tmp_path, payments=300, kills=5, watch=interrupted)
    assert not [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(process.info["cmdline"] or [])
    ]


@pytest.mark.parametrize(
    ("way", "never", "again", "as_promised"),
    [
        (AT_MOST_ONCE, 3, 0, True),
        (AT_MOST_ONCE, 0, 1, False),
        (AT_LEAST_ONCE, 0, 3, True),
        (AT_LEAST_ONCE, 1, 0, False),
        (DEDUP, 0, 0, True),
        (DEDUP, 0, 1, False),
    ],
)
def test_a_ledger_says_when_a_promise_was_broken(way, never: int, again: int, as_promised: bool):
    assert Ledger(way, 1000, never=never, again=again).as_promised is as_promised


def test_a_broker_that_cannot_be_fetched_says_why():
    with Fetch(["no-such-broker"]) as fetch:
        assert "no-such-broker" in fetch.wait("no-such-broker", timeout=30)
