"""The page: a matrix, and behind each place the story of that cell. One file, no script, nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader

from brokerkit_conformance import verdict
from brokerkit_conformance.checkers import examine
from brokerkit_conformance.report import words
from brokerkit_conformance.report.trails import Trail, trails
from brokerkit_conformance.verdict import Verdict

if TYPE_CHECKING:
    from brokerkit_conformance.cell import Cell
    from brokerkit_conformance.history import History


@dataclass(slots=True)
class Tale:
    """One cell as the page tells it."""

    cell: Cell
    anchor: str
    title: str
    asked: str
    counts: str
    trails: list[Trail] = field(default_factory=list)
    more_trails: int = 0

    @property
    def tone(self) -> str:
        return self.cell.verdict.replace(" ", "-")


def page(cells: Sequence[Cell], whole: Mapping[str, Any], history_of: Callable[[Cell], History | None]) -> str:
    """The HTML. `whole` is what results.json holds; `history_of` a cell, where there is one."""
    environment = Environment(
        loader=PackageLoader("brokerkit_conformance.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(plain=words.plain, flat=_flat, number=_number)
    tales = [_tale(number, cell, history_of(cell)) for number, cell in enumerate(cells, 1)]
    return environment.get_template("page.html").render(
        whole=whole,
        when=_when(whole.get("started")),
        seconds=whole.get("seconds"),
        command=whole.get("command"),
        seed=whole.get("seed"),
        tally=[(v, str(v).replace(" ", "-"), sum(c.verdict == v for c in cells)) for v in Verdict],
        meaning=words.MEANING,
        targets=list(dict.fromkeys(cell.target for cell in cells)),
        lines=list(_lines(tales)),
        tales=tales,
        exceptions=words.exceptions(cells),
    )


def _tale(number: int, cell: Cell, history: History | None) -> Tale:
    tale = Tale(
        cell,
        f"cell-{number}",
        words.title(cell.check),
        words.asked(*words.row_of(cell)[1:]),
        words.counts(cell),
    )
    if history is not None and history.cell is not None:
        findings = examine(history)
        tale.trails, tale.more_trails = trails(findings, verdict.judge(history, findings).against)
    return tale


def _lines(tales: list[Tale]) -> Iterator[tuple[str, int, str, dict[str, Tale]]]:
    """Each line of the matrix: the check (once), how many lines it spans, the guarantees, the tales by target."""
    places = {(tale.cell.target, *words.row_of(tale.cell)): tale for tale in tales}
    rows = words.rows(tale.cell for tale in tales)
    targets = list(dict.fromkeys(tale.cell.target for tale in tales))
    before = ""
    for row in rows:
        span = sum(other[0] == row[0] for other in rows) if row[0] != before else 0
        across = {target: places[target, *row] for target in targets if (target, *row) in places}
        yield words.title(row[0]), span, words.asked(*row[1:]), across
        before = row[0]


def _when(started: object) -> str:
    if not isinstance(started, (int, float)):
        return ""
    return datetime.fromtimestamp(started / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _number(value: float | None) -> str:
    """Three significant places, and a dash for what there is none of."""
    if value is None:
        return "–"
    return f"{value:,.3g}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}"


def _flat(value: object) -> str:
    """Evidence in one line."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (dict, list)) else str(value)
