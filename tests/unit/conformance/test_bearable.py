"""A broker that bears little is given little: cells at a time, and sends a second."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from brokerkit_conformance import runner
from brokerkit_conformance.faults.together import Together
from brokerkit_conformance.runner import Options, Plan, Quiet, run_target
from brokerkit_conformance.targets import Asked, Target

from brokerkit.driver import Capabilities
from brokerkit.guarantees import Guarantee
from brokerkit.local.chain import Chain
from brokerkit.plugins import plugins


def target(cells: int | None, sends: float | None) -> Target:
    def make() -> Chain:
        broker = Chain("small", [])
        broker.cells_at_once, broker.sends_a_second = cells, sends
        return broker

    made = Target(Asked("small", plugins()["sqlite"], make=make))
    once = frozenset({Guarantee.AT_LEAST_ONCE})
    made.capabilities = Capabilities(producer_guarantees=once, consumer_guarantees=once)
    return made


@pytest.mark.parametrize(("bears", "asked", "most"), [(2, 8, 2), (None, 3, 3), (8, 1, 1)])
def test_no_more_cells_run_at_a_time_than_it_bears(
    bears: int | None, asked: int, most: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running: list[str] = []
    seen: list[int] = []
    all_that_may = threading.Barrier(most)

    def cell(target: Target, some: Plan, *_: Any) -> str:
        running.append(some.slug)
        all_that_may.wait(10.0)
        seen.append(len(running))
        all_that_may.wait(10.0)
        running.remove(some.slug)
        return some.slug

    monkeypatch.setattr(runner, "run_cell", cell)
    checks = ("fan_out", "order", "poison", "nack_delay", "send_refused", "clean_shutdown")
    found = run_target(
        target(bears, None), Options(checks=checks, at_once=asked), tmp_path, Quiet(), threading.Semaphore(8)
    )
    assert len(found) == len(checks)
    assert max(seen) <= most


def test_no_more_cells_share_a_fault_than_it_bears(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meetings: list[Together] = []

    def cell(target: Target, some: Plan, options: Options, report: Path, meeting: Together) -> str:
        meetings.append(meeting)
        meeting.do(lambda: None)
        return some.slug

    monkeypatch.setattr(runner, "run_cell", cell)
    small = target(2, None)
    both = frozenset({Guarantee.AT_MOST_ONCE, Guarantee.AT_LEAST_ONCE})
    small.capabilities = Capabilities(producer_guarantees=both, consumer_guarantees=both)
    found = run_target(small, Options(checks=("broker_killed",)), tmp_path, Quiet(), threading.Semaphore(8))
    assert len(found) == 3
    assert [meetings.count(meeting) for meeting in dict.fromkeys(meetings)] == [2, 1]


def test_a_stream_is_no_faster_than_it_bears() -> None:
    assert target(None, 20.0).bearable(200) == 20.0
    assert target(None, 20.0).bearable(5) == 5
    assert target(None, None).bearable(200) == 200
