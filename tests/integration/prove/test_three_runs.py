"""Three whole runs over four brokers, each with its own seed, come to the same verdicts."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

TARGETS = ("sqlite", "rabbitmq", "rabbitmq:3.10", "kafka")
A_RUN = 1800.0
SEEN = {"loss": "lost", "duplicate": "duplicated", "reorder": "reordered"}
"""Under which count of `observed` what a claim names is seen."""

pytestmark = [pytest.mark.prove, pytest.mark.integration, pytest.mark.timeout(3 * A_RUN + 300)]


def test_three_runs_in_a_row_agree_on_every_verdict_and_witness_all_that_is_expected(conformance: Any) -> None:
    runs = []
    for number, seed in enumerate(random.SystemRandom().sample(range(1 << 31), 3), 1):
        print(f"run {number}: seed {seed}", flush=True)
        runs.append(conformance(*TARGETS, "--seed", str(seed), timeout=A_RUN, report=f"run-{number}"))
        enough_is_held(runs[-1])
        all_expected_is_witnessed(runs[-1])
    first, *others = [verdicts(run) for run in runs]
    for number, other in enumerate(others, 2):
        assert other.keys() == first.keys(), f"runs 1 and {number} are not of the same cells"
        different = {cell: (first[cell], other[cell]) for cell in first if first[cell] != other[cell]}
        assert different == {}, f"runs 1 and {number} disagree"


def enough_is_held(run: dict[str, Any]) -> None:
    assert run["unavailable"] == {}
    held = Counter(cell["target"] for cell in run["cells"] if cell["verdict"] == "held")
    assert {target: held[target] for target in TARGETS if held[target] < 12} == {}, held


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
