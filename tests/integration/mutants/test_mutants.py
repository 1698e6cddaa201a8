"""Every mutant runs through the runner as an adapter would, and its check must catch it, for its reason."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from brokerkit_conformance.cell import Cell
from brokerkit_conformance.checks.registry import checks_of
from brokerkit_conformance.mutants import MUTANTS, Mutant
from brokerkit_conformance.runner import Options, Plan, run_cell
from brokerkit_conformance.stores import Stores
from brokerkit_conformance.targets import Target, understand

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

AT_ONCE = 4


class Runs:
    """Runs the selected mutants: broken adapters some at once, broken harnesses alone, since they change the suite
    that runs them."""

    def __init__(self, selected: list[Mutant], directory: Path) -> None:
        self.selected = selected
        self.directory = directory
        self.targets: dict[str, Target] = {}
        self.stores = Stores(sorted({mutant.store for mutant in selected if mutant.store}))
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="mutant")
        self._cells: dict[str, Future[Cell]] = {}
        self._lock = threading.Lock()

    def cell(self, mutant: Mutant) -> Cell:
        self._start(mutant.target)
        if mutant.kind == "harness":
            for other in self._cells.values():
                other.exception()
            with mutant.at_work():
                return self._run(mutant)
        if mutant.id not in self._cells:
            for some in self.selected:
                if some.kind != "harness" and some.target == mutant.target:
                    self._cells[some.id] = self._pool.submit(self._run, some)
        return self._cells[mutant.id].result()

    def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for target in self.targets.values():
            target.stop()
        self.stores.close()

    def _run(self, mutant: Mutant) -> Cell:
        target = self.targets[mutant.target]
        spec = dataclasses.replace(checks_of(target.plugin.name)[mutant.caught_by], trials=mutant.trials)
        plan = Plan(mutant.target, spec, mutant.producer_guarantee, mutant.guarantee, mutant.store)
        options = Options(seed=1, adapter=mutant.adapter, stores=self.stores)
        return run_cell(target, plan, options, self.directory / mutant.id)

    def _start(self, name: str) -> None:
        if name in self.targets:
            return
        target = Target(understand(name))
        try:
            target.start()
        except BaseException:
            target.stop()
            raise
        self.targets[name] = target


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    selected = [item.callspec.params["mutant"] for item in request.session.items if "runs" in item.fixturenames]
    found = Runs(selected, tmp_path_factory.mktemp("mutants"))
    yield found
    found.stop()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_a_mutant_is_caught_by_the_check_meant_for_it(
    mutant: Mutant, runs: Runs, record_property: Callable[[str, object], None]
) -> None:
    cell = runs.cell(mutant)
    record_property("mutant", f"{mutant.name} on {mutant.where}: {cell.check}: {cell.verdict}: {cell.reason}")
    assert mutant.escaped(cell) == ""
