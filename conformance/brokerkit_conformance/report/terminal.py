"""The matrix on a terminal: failure points down, targets across, counts and the verdict in each place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from brokerkit_conformance.report import words
from brokerkit_conformance.verdict import Verdict

if TYPE_CHECKING:
    from brokerkit_conformance.cell import Cell
    from brokerkit_conformance.runner import Run

STYLE = {
    Verdict.HELD: "green",
    Verdict.VIOLATED: "bold red",
    Verdict.NOT_WITNESSED: "bold magenta",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.UNSUPPORTED: "dim",
    Verdict.SKIPPED: "dim",
}


def matrix(run: Run) -> RenderableType:
    """The matrix, then a line for every cell that is not green, every exception, and every absent target."""
    parts: list[RenderableType] = [_table(run)] if run.cells else []
    parts += [_trouble(cell) for cell in run.cells if not cell.green]
    parts += [
        Text.assemble(("unavailable ", "bold red"), (name, "bold"), f"  {why}") for name, why in run.unavailable.items()
    ]
    for target, check, note in words.exceptions(run.cells):
        parts.append(Text.assemble(("exception ", "yellow"), (f"{target}, {check}: ", "bold"), note))
    parts.append(Text(words.summary(run.cells), style="green" if run.green else "bold red"))
    return Group(*parts)


def _table(run: Run) -> Table:
    targets = list(dict.fromkeys(cell.target for cell in run.cells))
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True, padding=(0, 2, 0, 0))
    table.add_column("failure point", overflow="fold")
    table.add_column("asked", overflow="fold", style="cyan")
    for name in targets:
        table.add_column(name, overflow="fold")
    cells = {(cell.target, *words.row_of(cell)): cell for cell in run.cells}
    before = ""
    for row in words.rows(run.cells):
        places = [cells.get((target, *row)) for target in targets]
        first = words.title(row[0]) if row[0] != before else ""
        table.add_row(first, words.asked(*row[1:]), *(_place(cell) for cell in places))
        before = row[0]
    return table


def _place(cell: Cell | None) -> Text:
    if cell is None:
        return Text("·", style="dim")
    counted = words.counts(cell)
    verdict = Text(cell.verdict, style=STYLE[Verdict(cell.verdict)])
    return Text.assemble(f"{counted}: ", verdict) if counted else verdict


def _trouble(cell: Cell) -> Text:
    where = f" {cell.target}, {words.title(cell.check)}, {words.asked(*words.row_of(cell)[1:])}: "
    return Text.assemble((cell.verdict, STYLE[Verdict(cell.verdict)]), (where, "bold"), cell.reason)
