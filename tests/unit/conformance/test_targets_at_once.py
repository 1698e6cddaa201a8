"""Several targets at the same time, each by itself."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from brokerkit_conformance import runner
from brokerkit_conformance.actors.supervise import going_on
from brokerkit_conformance.cell import Cell
from brokerkit_conformance.runner import Options, Run, Watcher, run
from brokerkit_conformance.targets import Asked

from brokerkit.local.contract import Unavailable
from brokerkit.plugins import plugins

ASKED = [Asked(name, plugins()["sqlite"]) for name in ("a", "b", "c")]


class Started:
    """A target that has nothing to start; `c` cannot be brought up."""

    def __init__(self, asked: Asked) -> None:
        self.name = asked.name
        self.versions = {"version": asked.name}

    def __enter__(self) -> Started:
        if self.name == "c":
            raise Unavailable("nothing to start it with")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None


@pytest.fixture(autouse=True)
def nothing_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "Target", Started)


def test_two_run_at_a_time_and_are_reported_in_the_order_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    both = threading.Barrier(2)
    second = threading.Event()

    def judge(target: Started, options: Options, report: Path, watcher: Watcher, *_: Any) -> list[Cell]:
        both.wait(10)
        if target.name == "a":
            assert second.wait(10)
        second.set()
        return [Cell(target.name, "check", "once", "once", verdict="held")]

    monkeypatch.setattr(runner, "run_target", judge)
    found = Run()
    run(ASKED, Options(targets_at_once=2), tmp_path, found)
    assert [cell.target for cell in found.cells] == ["a", "b"]
    assert found.versions == {"a": {"version": "a"}, "b": {"version": "b"}}
    assert found.unavailable == {"c": "nothing to start it with"}
    assert not found.green


def test_an_error_of_the_suites_own_ends_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def judge(target: Started, options: Options, report: Path, watcher: Watcher, *_: Any) -> list[Cell]:
        both.wait(10)
        if target.name == "a":
            raise ZeroDivisionError
        with pytest.raises(Exception, match="interrupted"):
            while True:
                going_on()
        return [Cell(target.name, "check", "once", "once", verdict="held")]

    monkeypatch.setattr(runner, "run_target", judge)
    found = Run()
    with pytest.raises(ZeroDivisionError):
        run(ASKED[:2], Options(targets_at_once=2), tmp_path, found)
    assert [cell.target for cell in found.cells] == ["b"]
    going_on()
