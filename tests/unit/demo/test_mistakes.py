"""`brokerkit once mistakes` shows what each mistake costs and that its cure is exact, with workers really killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from brokerkit_conformance.demo.books import Ledger
from brokerkit_conformance.demo.mistakes import MISTAKES, Mistake, Played, Scene

OUGHT = 40 * 50
ROW = re.compile(
    r"(?P<way>.*?) *\$(?P<ought>[\d,]+) +\$(?P<charged>[\d,]+) +(?P<killed>\d+) +(?P<never>\d+) +(?P<again>\d+)"
)


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What the command prints, by mistake."""
    ended = subprocess.run(
        [sys.executable, "-c", "from brokerkit.cli import main; main()", "once", "mistakes"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    parts = re.split(r"^(?=\d\. )", ended.stdout, flags=re.MULTILINE)[1:]
    assert len(parts) == len(MISTAKES) == 7, ended.stdout
    return parts


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(7), ids=[mistake.title for mistake in MISTAKES])
def test_a_mistake_costs_money_and_its_cure_is_exact(printed: list[str], number: int):
    mistake, said = MISTAKES[number], printed[number]
    assert said.startswith(f"{number + 1}. {mistake.title}")
    wrong, right = (
        {name: found if name == "way" else int(found.replace(",", "")) for name, found in row.groupdict().items()}
        for row in map(ROW.search, said.replace("│", " ").splitlines())
        if row
    )
    assert wrong["way"].strip() == mistake.wrong.title
    assert (wrong["never"] > 0, wrong["again"] > 0) == (mistake.wrong.loses, mistake.wrong.doubles), said
    assert wrong["never"] + wrong["again"] > 0
    assert wrong["charged"] == OUGHT + 50 * (wrong["again"] - wrong["never"])
    assert right["way"].strip() == mistake.right.title
    assert (right["charged"], right["never"], right["again"]) == (OUGHT, 0, 0)
    assert wrong["killed"] == right["killed"], "not the same faults"
    assert wrong["ought"] == right["ought"] == OUGHT


def ledger(mistake: Mistake, right: bool, **more) -> Ledger:
    return Ledger(mistake.right if right else mistake.wrong, 40, sent=40, finished=True, **more)


@pytest.mark.parametrize(
    ("wrong", "right", "shown"),
    [
        ({"again": 3}, {}, True),
        ({}, {}, False),
        ({"again": 3, "never": 1}, {}, False),
        ({"again": 3}, {"again": 1}, False),
        ({"again": 3}, {"never": 1}, False),
    ],
)
def test_a_mistake_without_cost_or_a_cure_with_one_fails(wrong: dict[str, int], right: dict[str, int], shown: bool):
    doubles = next(mistake for mistake in MISTAKES if mistake.wrong.doubles)
    played = Played(doubles, ledger(doubles, False, **wrong), ledger(doubles, True, **right))
    assert played.shown is shown


def test_no_worker_outlives_its_scene(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        with Scene(MISTAKES[1].wrong, tmp_path) as scene:
            scene.send()
            scene.at(scene.hand.works, "received")
            raise KeyboardInterrupt
    assert not [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(process.info["cmdline"] or [])
    ]
