"""Leases on every broker: kept under a slow handler and in the buffer, over when nobody keeps them, and given up by the
dead, the stopped and the hung within the stated bound."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(330)]

ALL = frozenset({"lease_expired", "lease_kept", "buffered_lease", "lease_released"})
KEPT = ALL - {"lease_expired"}
"""Polled leases are over only with their process, which `consumer_frozen` stops."""
FIXED = frozenset({"lease_expired", "lease_released"})
HELD = {
    "sqlite": ALL,
    "sqs:elasticmq": ALL,
    "pubsub": ALL,
    "pubsub:pstest": ALL,
    "kafka": KEPT,
    "rabbitmq": FIXED,
    "rabbitmq:3.10": FIXED - {"lease_expired"},  # its consumer timeout is the broker's alone
}


@pytest.mark.parametrize("target", HELD)
def test_leases_are_kept_and_given_up(target: str, tmp_path: Path) -> None:
    arguments = ["run", target, "--check=lease_*", "--check=buffered_lease", "--report", str(tmp_path)]
    ran = subprocess.run(
        [sys.executable, "-c", "from brokerkit_conformance.cli import app; app()", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    asked = {cell["check"]: cell for cell in cells if cell["guarantee"] == "at_least_once"}
    assert asked.keys() == ALL
    verdicts = {name: cell["verdict"] for name, cell in asked.items()}
    assert verdicts == {name: "held" if name in HELD[target] else "unsupported" for name in ALL}
    if "lease_kept" in HELD[target]:
        assert asked["lease_kept"]["observed"]["received"] == asked["lease_kept"]["observed"]["sent"] == 101
    for cell in cells:
        assert cell["guarantee"] == "at_least_once" or cell["verdict"] == "unsupported"
