"""The suite as a user runs it: on the embedded broker, from the command line, and killed in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from brokerkit_conformance.checks import ORDER, once
from brokerkit_conformance.checks.registry import checks
from brokerkit_conformance.history import History
from brokerkit_conformance.runner import Options, Plan, judged, run_cell
from brokerkit_conformance.targets import Target, understand

from brokerkit.guarantees import FailurePoint
from brokerkit.local.targets import stores
from brokerkit.plugins import plugins

SUITE = Path(__import__("brokerkit_conformance").__file__).parent
FIELDS = {
    *("target", "check", "guarantee", "producer_guarantee", "claim", "verdict", "trials", "seed", "observed"),
    *("metrics", "fault", "history"),
}
OBSERVED = {
    *("sent", "confirmed", "unknown", "refused", "received", "effects", "lost", "blocked", "duplicated"),
    *("redelivered", "reordered", "phantom"),
}


def suite(*arguments: object, timeout: float = 110) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout, check=False)


def command(*arguments: object) -> list[str]:
    program = "from brokerkit_conformance.cli import app; app()"
    return [sys.executable, "-c", program, *(str(some) for some in arguments)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few telling checks."""
    place = tmp_path_factory.mktemp("report")
    wanted = ("fan_out", "consumer_killed_before_*", "confirm_lost", "send_*", "poison")
    ran = suite("run", "sqlite", *(f"--check={glob}" for glob in wanted), "--seed=7", "--report", place)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return place


@pytest.fixture(scope="module")
def cells(report: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((report / "results.json").read_text())["cells"]
    return found


def of(cells: list[dict[str, object]], check: str, **where: str) -> dict[str, object]:
    return next(c for c in cells if c["check"] == check and all(c[name] == value for name, value in where.items()))


def test_every_cell_has_all_that_the_format_says(cells: list[dict[str, object]]) -> None:
    for cell in cells:
        assert cell.keys() >= FIELDS
        assert set(cell["observed"]) >= OBSERVED  # type: ignore[call-overload]
        assert cell["seed"] == 7


def test_a_duplicate_is_provoked_where_it_is_expected(cells: list[dict[str, object]]) -> None:
    cell = of(cells, "consumer_killed_before_ack", guarantee="at_least_once")
    assert cell["verdict"] == "held"
    assert cell["observed"]["duplicated"] >= cell["trials"] == 3  # type: ignore[index]
    assert [fault["evidence"]["status"] for fault in cell["fault"]] == [-9, -9, -9]  # type: ignore[attr-defined]


def test_a_loss_is_provoked_where_it_is_expected(cells: list[dict[str, object]]) -> None:
    cell = of(cells, "consumer_killed_before_processing", guarantee="at_most_once")
    assert cell["verdict"] == "held"
    assert cell["observed"]["lost"] >= 3  # type: ignore[index]
    assert cell["observed"]["duplicated"] == 0  # type: ignore[index]


def test_what_cannot_be_induced_is_unsupported_and_says_why(cells: list[dict[str, object]]) -> None:
    cell = of(cells, "confirm_lost", producer_guarantee="at_least_once")
    assert cell["verdict"] == "unsupported"
    assert "not reached over a network" in str(cell["reason"])


def test_what_cannot_be_induced_is_not_called_expected(cells: list[dict[str, object]]) -> None:
    unsupported = [cell for cell in cells if cell["verdict"] == "unsupported"]
    assert any(cell["check"] == "send_fails" for cell in unsupported)
    for cell in unsupported:
        assert "expected" not in cell["claim"].values(), cell  # type: ignore[attr-defined]


def test_at_most_once_nothing_is_claimed_about_refusals(cells: list[dict[str, object]]) -> None:
    cell = of(cells, "send_refused", producer_guarantee="at_most_once")
    assert (cell["verdict"], cell["claim"]) == ("skipped", None)
    assert of(cells, "send_refused", producer_guarantee="at_least_once")["verdict"] == "held"


def test_a_saved_history_is_judged_the_same_without_a_broker(report: Path, cells: list[dict[str, object]]) -> None:
    for cell in cells:
        again = judged(History.load(report / str(cell["history"])), str(cell["history"]))
        assert again.verdict == cell["verdict"]
        assert again.observed == cell["observed"]


def test_the_command_judges_a_saved_history(report: Path, cells: list[dict[str, object]]) -> None:
    history = report / str(of(cells, "poison", guarantee="at_least_once")["history"])
    ran = suite("check", history)
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["verdict"] == "held"


def test_a_file_that_is_no_history_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"not": "an event"}\n')
    ran = suite("check", bad)
    assert ran.returncode == 2
    assert "bad.jsonl:1" in ran.stderr


def test_the_list_names_every_check_and_target() -> None:
    ran = suite("list")
    assert ran.returncode == 0
    for name in checks():
        assert name in ran.stdout
    assert "target sqlite" in ran.stdout


def test_an_unknown_target_is_an_error_that_lists_the_known_ones() -> None:
    ran = suite("run", "nosuch")
    assert ran.returncode == 2
    assert "no target 'nosuch'" in ran.stdout
    assert "sqlite" in ran.stdout


def test_every_failure_point_of_the_contract_has_a_check() -> None:
    points = {spec.point for spec in checks().values() if not spec.in_store}
    assert points == {str(point) for point in FailurePoint}
    assert [*ORDER, *(f"once.{name}" for name in once.ORDER)] == list(checks())


def test_nothing_in_the_suite_names_a_broker() -> None:
    names = {name for plugin in plugins().values() for name in (plugin.name, *plugin.schemes)} - {"memory"}
    names |= {name.partition(":")[0] for name in stores()}
    pattern = re.compile("|".join(sorted(names)), re.IGNORECASE)
    found = [
        f"{file.relative_to(SUITE)}: {line.strip()}"
        for file in SUITE.rglob("*.py")
        if not {"mutants", "demo"} & set(file.parts)
        for line in file.read_text().splitlines()
        if pattern.search(line)
    ]
    assert found == []


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    place = tmp_path / "temporary"
    place.mkdir()
    return place


@pytest.fixture
def running(tmp_path: Path, temporary: Path) -> Iterator[subprocess.Popen[bytes]]:
    checks = ("consumer_frozen", "producer_killed", "consumer_killed_before_ack")
    process = subprocess.Popen(
        command("run", "sqlite", *(f"--check={check}" for check in checks), "--report", tmp_path / "report"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_runner_that_is_ended_in_the_middle_leaves_no_process_and_no_temporary_data(
    running: subprocess.Popen[bytes], number: signal.Signals, temporary: Path
) -> None:
    children = _wait_for_children(running.pid, 3)
    assert list(temporary.iterdir())
    running.send_signal(number)
    # It stops in the middle of its cells; run to their end they would take a good minute.
    running.wait(20)
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert len(gone) >= 3
    deadline = time.monotonic() + 10
    while (left := list(temporary.rglob("*"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_an_interrupted_run_reports_the_cells_that_had_ended(number: signal.Signals, tmp_path: Path) -> None:
    report = tmp_path / "report"
    checks = ("--check=clean_shutdown", "--check=lease_*", "--check=consumer_frozen")
    process = subprocess.Popen(
        command("run", "sqlite", *checks, "--at-once=2", "--report", report), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.split()[:1] == ["held"]:
                break
        process.send_signal(number)
        process.communicate(timeout=20)
        assert process.returncode == 130
        found = json.loads((report / "results.json").read_text())
        assert found["cells"]
        assert {cell["verdict"] for cell in found["cells"]} == {"held"}
        assert "consumer_frozen" not in {cell["check"] for cell in found["cells"]}
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_demo_that_is_ended_while_its_consumers_start_leaves_none_of_them(
    number: signal.Signals, tmp_path: Path
) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "brokerkit.cli", "demo"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        cwd=tmp_path,
    )
    children: list[psutil.Process] = []
    try:
        children = _wait_for_children(demo.pid, 1, "demo.consumer")
        for child in children:
            if "demo.consumer" in " ".join(_command_of(child)):
                child.suspend()  # so that it does not come to look who its parent is
        demo.send_signal(number)
        demo.wait(20)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
    finally:
        demo.kill()
        demo.wait()
        for child in children:
            if child.is_running():
                child.kill()


def _wait_for_children(pid: int, count: int, program: str = "") -> list[psutil.Process]:
    """All children of the process, as soon as so many of them run this program."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = psutil.Process(pid).children(recursive=True)
        if sum(program in " ".join(_command_of(child)) for child in children) >= count:
            return children
        time.sleep(0.05)
    raise AssertionError(f"the run did not start {count} actors")


def _command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def test_another_program_may_play_a_part(tmp_path: Path) -> None:
    played = tmp_path / "played"
    module = "brokerkit_conformance.actors.consumer"
    program = (
        f"import pathlib, runpy; pathlib.Path({str(played)!r}).touch(); runpy.run_module({module!r}, None, '__main__')"
    )
    options = Options(programs={"consumer": [sys.executable, "-c", program]})
    with Target(understand("sqlite")) as target:
        plan = Plan(target.name, checks()["clean_shutdown"], "at_least_once", "at_least_once")
        cell = run_cell(target, plan, options, tmp_path)
    assert cell.verdict == "held", cell.reason
    assert played.exists()
