"""The conformance suite on Google's fake: held where it can be, unsupported by name where it cannot."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
CHECKS = (
    "fan_out",
    "broker_killed",
    "consumer_killed_before_ack",
    "hazard_publish_answer_lost",
    "hazard_ack_answer_lost",
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    place = tmp_path_factory.mktemp("report")
    arguments = ["conformance", "run", "pubsub:pstest", "--report", str(place), *(f"--check={name}" for name in CHECKS)]
    ended = subprocess.run(
        [sys.executable, "-m", "brokerkit.cli", *arguments], capture_output=True, text=True, timeout=230
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found: list[dict[str, object]] = json.loads((place / "results.json").read_text())["cells"]
    return found


def of(cells: list[dict[str, object]], check: str) -> dict[str, object]:
    return next(
        cell
        for cell in cells
        if cell["check"] == check and cell["producer_guarantee"] == cell["guarantee"] == "at_least_once"
    )


def test_every_cell_is_held_but_the_death_of_what_keeps_nothing(cells: list[dict[str, object]]) -> None:
    assert {str(cell["check"]) for cell in cells} == set(CHECKS)
    killed = of(cells, "broker_killed")
    assert killed["verdict"] == "unsupported"
    assert "keeps nothing on disk" in str(killed["reason"])
    rest = [check for check in CHECKS if check != "broker_killed"]
    assert {check: of(cells, check)["verdict"] for check in rest} == dict.fromkeys(rest, "held")


def test_the_witnesses_are_seen(cells: list[dict[str, object]]) -> None:
    for check in ("consumer_killed_before_ack", "hazard_publish_answer_lost"):
        assert of(cells, check)["observed"]["duplicated"] > 0, check  # type: ignore[index]


def test_an_untold_depth_still_ends_in_a_verdict(cells: list[dict[str, object]]) -> None:
    told = of(cells, "fan_out")
    assert "untold" in " ".join(map(str, told["done"]))  # type: ignore[call-overload]
