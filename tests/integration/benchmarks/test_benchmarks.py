"""The benchmarks run, and memory stays flat over many messages each way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def module(name: str, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", name, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


def test_a_row_has_all_sides_of_the_same_work(tmp_path: Path):
    file = tmp_path / "figures.json"
    ended = module(
        "benchmarks", "--only", "sqlite: receive*", "--rounds", "1", "--scale", "0.02", "--json", str(file), timeout=100
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    [row] = json.loads(file.read_text())["rows"]
    assert row["work"] == "sqlite: receive and ack"
    assert row["brokerkit"] > 0
    assert row["raw"] > 0
    assert row["ratio_to_raw"] == pytest.approx(row["brokerkit"] / row["raw"])


def test_a_side_that_fails_is_named_and_the_run_is_not_green(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)
    from benchmarks.measure import Call, Side, Work, measure

    url = f"sqlite:///{tmp_path}/queue.db"
    broken = Side("broken", lambda topic: Call("ours", "receive", (url, topic, 1), {"guarantee": "hope"}))
    row = measure(Work("broken", url, [broken]), rounds=2).as_dict()
    assert row["brokerkit"] is None
    assert "hope" in row["failed"]["broken"]


@pytest.mark.prove
@pytest.mark.integration
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", ["sqlite", "rabbitmq", "kafka"])
def test_memory_is_flat_over_a_million_messages_each_way(target: str):
    ended = module("benchmarks.soak", target, "--messages", "1000000", timeout=1700)
    assert ended.returncode == 0, ended.stdout + ended.stderr
