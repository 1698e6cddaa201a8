"""The checks of effects in a store, as a user runs them: the ledger is exact, and what doubles is seen doubling."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from brokerkit_conformance.checks import once
from brokerkit_conformance.history import History
from brokerkit_conformance.runner import judged

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CHECKS = [f"once.{name}" for name in once.ORDER]
OF_KEYS = ("once.key_holder_killed", "once.key_holder_frozen", "once.key_with_another_body")
DOUBLING = ("once.sent_after_window", "once.dedup_in_memory")
NEEDS_A_PROCESS = ("once.commit_lost", "once.store_killed")
MAIN = ("killed_before_commit", "killed_before_ack", "two_workers", "commit_lost", "store_killed", "everything")

Ran = dict[tuple[str, str, str], dict[str, Any]]
"""Cells by target, check and store."""


def run(place: Path, targets: list[str], checks: list[str], stores: list[str]) -> tuple[Path, dict[str, Any]]:
    program = "from brokerkit_conformance.cli import app; app()"
    options = [*(f"--check={name}" for name in checks), *(f"--store={name}" for name in stores)]
    command = [sys.executable, "-c", program, "run", *targets, *options, "--seed=7", "--report", str(place)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=560, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return place, json.loads((place / "results.json").read_text())


def cells(results: dict[str, Any]) -> Ran:
    return {(cell["target"], cell["check"], cell["store"]): cell for cell in results["cells"]}


def exact(cell: dict[str, Any]) -> bool:
    """To the dollar."""
    ledger = cell["metrics"]["ledger"]
    return bool(ledger["owed"] == ledger["charged"] == ledger["balances"] > 0)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Every check on the embedded broker, with an embedded store, with a server, and with a store of keys."""
    return run(tmp_path_factory.mktemp("once"), ["sqlite"], ["once.*"], ["sqlite", "postgresql", "valkey"])


@pytest.mark.parametrize("store", ["sqlite", "postgresql", "valkey"])
@pytest.mark.parametrize("check", CHECKS)
def test_on_the_embedded_broker_every_dollar_is_charged_once(
    embedded: tuple[Path, dict[str, Any]], check: str, store: str
) -> None:
    cell = cells(embedded[1])["sqlite", check, store]
    if store == "valkey" and check not in OF_KEYS:
        assert cell["verdict"] == "skipped"
        assert "keeps idempotency keys and nothing else" in cell["reason"]
        return
    if check == "once.checkpoint" or (store == "sqlite" and check in NEEDS_A_PROCESS):
        assert cell["verdict"] == "unsupported"
        return
    assert cell["verdict"] == "held", cell["reason"]
    assert cell["observed"]["lost"] == 0
    if check in DOUBLING:
        assert cell["claim"]["duplicate"] == "expected"
        assert cell["metrics"]["ledger"]["charged"] > cell["metrics"]["ledger"]["owed"]
    else:
        assert cell["claim"]["duplicate"] == cell["claim"]["loss"] == "never"
        assert cell["observed"]["duplicated"] == 0
        assert exact(cell), cell["metrics"]["ledger"]


def test_the_report_says_what_the_stores_are(embedded: tuple[Path, dict[str, Any]]) -> None:
    place, results = embedded
    assert results["stores"]["sqlite"]["product"] == "SQLite"
    server = results["stores"]["postgresql"]
    assert server["product"] == "PostgreSQL"
    assert server["synchronous_commit"] == "on"
    page = (place / "index.html").read_text()
    assert f"<dd>{server['version']}</dd>" in page
    assert "exactly once in postgresql" in page
    assert "the ledger: $" in page
    assert 'name="once.two_workers[at_least_once-exactly_once-postgresql]"' in (place / "junit.xml").read_text()


def test_a_saved_history_is_judged_the_same_without_a_store(embedded: tuple[Path, dict[str, Any]]) -> None:
    place, results = embedded
    for cell in filter(lambda cell: cell["history"], results["cells"]):
        again = judged(History.load(place / cell["history"]), cell["history"])
        assert (again.store, again.verdict) == (cell["store"], cell["verdict"])
        assert again.metrics.get("ledger") == cell["metrics"].get("ledger")


def test_the_workers_were_killed_and_the_stores_too(embedded: tuple[Path, dict[str, Any]]) -> None:
    found = cells(embedded[1])
    killed = found["sqlite", "once.killed_before_commit", "postgresql"]["fault"]
    assert [fault["evidence"]["status"] for fault in killed] == [-9, -9]
    stores = found["sqlite", "once.store_killed", "postgresql"]["fault"]
    assert [fault["kind"] for fault in stores] == ["store_kill", "store_restart"] * 2
    lost = found["sqlite", "once.commit_lost", "postgresql"]["fault"]
    assert [fault["kind"] for fault in lost] == ["commit_dropped", "commit_answer_dropped"]
    relays = found["sqlite", "once.relay_killed", "postgresql"]["fault"]
    assert [fault["evidence"]["status"] for fault in relays] == [-9]
    holders = found["sqlite", "once.key_holder_killed", "valkey"]["fault"]
    assert [fault["evidence"]["status"] for fault in holders] == [-9, -9]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The main checks on brokers and a store that are servers."""
    checks = [f"once.{name}" for name in (*MAIN, "checkpoint")]
    return run(tmp_path_factory.mktemp("servers"), ["rabbitmq", "kafka"], checks, ["postgresql"])[1]


@pytest.mark.parametrize("target", ["rabbitmq", "kafka"])
@pytest.mark.parametrize("check", MAIN)
def test_between_servers_every_dollar_is_charged_once(servers: dict[str, Any], target: str, check: str) -> None:
    cell = cells(servers)[target, f"once.{check}", "postgresql"]
    assert cell["verdict"] == "held", cell["reason"]
    assert exact(cell), cell["metrics"]["ledger"]


def test_where_partitions_are_read_in_order_the_place_in_them_is_enough(servers: dict[str, Any]) -> None:
    found = cells(servers)
    assert found["rabbitmq", "once.checkpoint", "postgresql"]["verdict"] == "unsupported"
    cell = found["kafka", "once.checkpoint", "postgresql"]
    assert cell["verdict"] == "held", cell["reason"]
    assert exact(cell), cell["metrics"]["ledger"]
