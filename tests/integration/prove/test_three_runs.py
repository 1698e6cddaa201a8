"""Three runs, each with its own seed, come to the same verdicts: all of the suite over all brokers, and its checks of
transactions on a machine that is busy with something else."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from brokerkit_conformance.checks.registry import checks

TARGETS = {
    "seven": ("sqlite", "rabbitmq", "rabbitmq:3.10", "kafka", "sqs:elasticmq", "pubsub", "pubsub:pstest"),
    "moto": ("sqs:moto",),
}
A_RUN = 1800.0
SEEN = {"loss": "lost", "duplicate": "duplicated", "reorder": "reordered"}
"""Under which count of `observed` what a claim names is seen."""

pytestmark = [pytest.mark.prove, pytest.mark.integration, pytest.mark.timeout(3 * A_RUN + 300)]


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_three_runs_in_a_row_agree_on_every_verdict_and_witness_all_that_is_expected(
    conformance: Any, targets: tuple[str, ...]
) -> None:
    runs = []
    for number, seed in enumerate(random.SystemRandom().sample(range(1 << 31), 3), 1):
        print(f"run {number}: seed {seed}", flush=True)
        asked = (*targets, "--targets-at-once", "3", "--seed", str(seed))
        runs.append(conformance(*asked, timeout=A_RUN, report=f"run-{number}"))
        enough_is_held(runs[-1], targets)
        all_expected_is_witnessed(runs[-1])
    they_agree(runs)


def test_three_runs_of_the_checks_of_transactions_agree_on_a_busy_machine(conformance: Any) -> None:
    named = [name for name, spec in checks().items() if spec.varies == "transactions"]
    assert len(named) >= 9
    asked = [word for name in named for word in ("--check", name)]
    runs = []
    with busy(os.cpu_count() or 1):
        for number, seed in enumerate(random.SystemRandom().sample(range(1 << 31), 3), 1):
            print(f"run {number}: seed {seed}", flush=True)
            runs.append(conformance("kafka", *asked, "--seed", str(seed), timeout=A_RUN, report=f"run-{number}"))
            all_expected_is_witnessed(runs[-1])
            held = {cell["check"] for cell in runs[-1]["cells"] if cell["verdict"] == "held"}
            assert held == set(named)
    they_agree(runs)


@contextmanager
def busy(cores: int) -> Iterator[None]:
    """So many processes that do nothing and are never done. They end with their input."""
    program = (
        "import os, threading as t; t.Thread(target=lambda: (os.read(0, 1), os._exit(0))).start()\nwhile True: pass"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) for _ in range(cores)]
    try:
        yield
        assert [process.poll() for process in processes] == [None] * cores
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=10)


def they_agree(runs: list[dict[str, Any]]) -> None:
    first, *others = [verdicts(run) for run in runs]
    for number, other in enumerate(others, 2):
        assert other.keys() == first.keys(), f"runs 1 and {number} are not of the same cells"
        different = {cell: (first[cell], other[cell]) for cell in first if first[cell] != other[cell]}
        assert different == {}, f"runs 1 and {number} disagree"


def enough_is_held(run: dict[str, Any], targets: tuple[str, ...]) -> None:
    assert run["unavailable"] == {}
    held = Counter(cell["target"] for cell in run["cells"] if cell["verdict"] == "held")
    assert {target: held[target] for target in targets if held[target] < 12} == {}, held


def all_expected_is_witnessed(run: dict[str, Any]) -> None:
    """Of each claim that says `expected`; also in cells that are unsupported: what nobody can provoke here, nobody
    may call expected."""
    unseen = [
        (cell["target"], cell["check"], cell["producer_guarantee"], cell["guarantee"], word, cell["verdict"])
        for cell in run["cells"]
        for word, count in SEEN.items()
        if (cell["claim"] or {}).get(word) == "expected" and not cell["observed"][count]
    ]
    assert unseen == []


def verdicts(run: dict[str, Any]) -> dict[tuple[str, ...], str]:
    names = ("target", "check", "producer_guarantee", "guarantee")
    return {tuple(cell[name] for name in names): cell["verdict"] for cell in run["cells"]}
