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


@pytest.mark.integration
def test_a_copy_is_measured_beside_its_peers_and_plotted(tmp_path: Path):
    file, picture = tmp_path / "figures.json", tmp_path / "picture.svg"
    only = "kafka: copy exactly once, commits each 0.1 s"
    ended = module("benchmarks", "--only", only, "--rounds", "1", "--scale", "0.02", "--json", str(file), timeout=110)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    [row] = json.loads(file.read_text())["rows"]
    assert row["at"] == 0.1
    assert set(row["rounds"]) == {"brokerkit", "raw", "at least once", "quixstreams"}
    assert all(rate > 0 for [rate] in row["rounds"].values())
    plotted = module("benchmarks.plot", str(file), str(picture), timeout=60)
    assert plotted.returncode == 0, plotted.stdout + plotted.stderr
    assert all(text in picture.read_text() for text in ("at least once", "Quix Streams", "seconds between two commits"))


@pytest.mark.prove
@pytest.mark.integration
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("seconds", "least"), [("1", 0.95), ("0.1", 0.9)])
def test_exactly_once_is_nearly_as_fast_as_at_least_once_and_faster_than_a_peer(
    tmp_path: Path, seconds: str, least: float
):
    file = tmp_path / "figures.json"
    only = f"kafka: copy exactly once, commits each {seconds} s"
    ended = module("benchmarks", "--only", only, "--rounds", "9", "--json", str(file), timeout=2300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    [row] = json.loads(file.read_text())["rows"]
    assert row["ratio_to_peers"]["at least once"] >= least
    assert row["ratio_to_raw"] >= 0.85
    assert row["ratio_to_peers"]["quixstreams"] >= 1.4


def test_a_side_that_fails_is_named_and_the_run_is_not_green(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)
    from benchmarks.measure import Call, Side, Work, measure

    url = f"sqlite:///{tmp_path}/queue.db"
    broken = Side("broken", lambda topic: Call("ours", "receive", (url, topic, 1), {"guarantee": "hope"}))
    row = measure(Work("broken", url, [broken]), rounds=2).as_dict()
    assert row["brokerkit"] is None
    assert "hope" in row["failed"]["broken"]


def test_a_round_that_warms_up_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import measure

    rates = iter([1.0, 10.0, 30.0, 20.0])
    monkeypatch.setattr(measure, "once", lambda url, side: (next(rates), 0))
    side = measure.Side("brokerkit", lambda topic: measure.Call("ours", "send"))
    row = measure.measure(measure.Work("some", f"sqlite:///{tmp_path}/queue.db", [side], warm_ups=1), rounds=3)
    assert row.rounds == {"brokerkit": [10.0, 30.0, 20.0]}
    assert row.rates == {"brokerkit": 20.0}


@pytest.mark.prove
@pytest.mark.integration
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", ["sqlite", "rabbitmq", "kafka"])
def test_memory_is_flat_over_a_million_messages_each_way(target: str):
    ended = module("benchmarks.soak", target, "--messages", "1000000", timeout=1700)
    assert ended.returncode == 0, ended.stdout + ended.stderr
