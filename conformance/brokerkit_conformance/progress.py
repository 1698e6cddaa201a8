"""What a run shows while it runs: one line for each cell that is under way, and a count for each target."""

from __future__ import annotations

import threading

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from brokerkit_conformance.cell import Cell
from brokerkit_conformance.runner import Plan

_COLOURS = {"held": "green", "violated": "red", "not witnessed": "red", "inconclusive": "yellow"}


class Progress:
    """A watcher of runs for a terminal; on anything else one line for each cell that ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._targets: dict[str, TaskID] = {}
        self._cells: dict[tuple[str, ...], TaskID] = {}
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def target(self, name: str, doing: str) -> None:
        with self._lock:
            self._console.print(f"[bold]{name}[/] {doing}", highlight=False)

    def planned(self, target: str, cells: int) -> None:
        with self._lock:
            self._targets[target] = self._bars.add_task(f"[bold]{target}[/]", total=cells)

    def begins(self, plan: Plan) -> None:
        with self._lock:
            what = f"  {plan.target} {plan.spec.name} ({_short(plan.producer)} / {_short(plan.consumer)})"
            key = (plan.target, plan.spec.name, plan.producer, plan.consumer, plan.store)
            self._cells[key] = self._bars.add_task(what, total=1)

    def ended(self, cell: Cell) -> None:
        with self._lock:
            task = self._cells.pop((cell.target, cell.check, cell.producer_guarantee, cell.guarantee, cell.store), None)
            if task is not None:
                self._bars.remove_task(task)
            self._bars.advance(self._targets[cell.target])
            colour = _COLOURS.get(cell.verdict, "dim")
            pair = f"{_short(cell.producer_guarantee)} / {cell.store or _short(cell.guarantee)}"
            self._console.print(
                f"  [{colour}]{cell.verdict:13}[/] {cell.target:16} {cell.check:34} {pair:30} {cell.seconds:5.1f} s  "
                f"{cell.reason}",
                highlight=False,
                markup=True,
                soft_wrap=True,
            )


def _short(guarantee: str) -> str:
    return guarantee.replace("_", " ")
