"""The guarantee matrix for a Markdown page: failure points down, targets across, claim and count in each place.

At least once at both ends, and exactly once for the failure points of transactions. Nothing is typed: the rows are the
suite's, all else comes from a run's results.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import CheckSpec, checks
from brokerkit_conformance.report import words
from brokerkit_conformance.verdict import Verdict

NAME = "guarantee matrix"
"""Of the place in a page that holds it."""

_LEGEND = (
    "Each place: what the plugin claims, then what was seen, lost / twice of all that was sent. *Once*: neither lost "
    "nor doubled. *May*: allowed; without it: has to be seen. *Not induced*: this failure cannot be made to happen "
    "there. A dash: nothing is claimed there."
)
_NO_SETTING = frozenset({"cluster", "client", "endpoint", "file", "kind", "product", "project", "provider", "version"})
"""What a target says of itself that is no setting: what it is, where it is, and whose client speaks to it."""


def rows() -> list[CheckSpec]:
    """The checks that are rows: each failure point's own."""
    points = {str(point) for point in FailurePoint if point is not FailurePoint.NONE}
    return [spec for spec in checks().values() if spec.name in points and spec.name == spec.point]


def guarantees(spec: CheckSpec) -> tuple[str, ...]:
    """The guarantees of the consumer, and of the producer unless transactions decide it."""
    return ("exactly_once",) if spec.varies == "transactions" else ("at_least_once", "at_least_once")


def joined(runs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Several runs as one: each target, with all its cells, as in the last of them that has it."""
    last = {name: run for run in runs for name in run["targets"]}
    cells = [cell for name, run in last.items() for cell in run["cells"] if cell["target"] == name]
    return {"targets": {name: run["targets"][name] for name, run in last.items()}, "cells": cells}


def table(results: Mapping[str, Any]) -> str:
    """The matrix of a run as Markdown, with what was judged below it."""
    targets = list(results["targets"])
    lines = [
        "| failure point | " + " | ".join(f"`{name}`" for name in targets) + " |",
        "|---" * (1 + len(targets)) + "|",
    ]
    for spec in rows():
        places = [_place(_cell(results["cells"], target, spec)) for target in targets]
        lines.append(f"| {_row(spec)} | " + " | ".join(places) + " |")
    about = "; ".join(_about(name, some) for name, some in results["targets"].items())
    return "\n".join([*lines, "", _LEGEND, "", f"Judged: {about}."])


def shape(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """Columns, and per row the claims, of a table that `table` wrote."""
    lines = [
        [part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    head, _, *body = lines
    return [name.strip("`") for name in head[1:]], {
        row[0]: [place.partition(":")[0] for place in row[1:]] for row in body
    }


def row_names() -> list[str]:
    """The first column."""
    return [_row(spec) for spec in rows()]


def put(page: Path, name: str, text: str) -> None:
    """Replaces what the page has between the markers of `name`. Raises ValueError for a page without them."""
    before, _, after = _parts(page, name)
    page.write_text(f"{before}\n{text}\n\n{after}", encoding="utf-8")


def taken(page: Path, name: str) -> str:
    """What the page has between the markers of `name`, without the line ends around it."""
    return _parts(page, name)[1].strip("\n")


def said(page: Path, name: str) -> list[str]:
    """The words that follow the name in the page's first marker."""
    marker = _parts(page, name)[0].rpartition("<!-- ")[2].strip()
    return marker.removesuffix("-->").removeprefix(name).removeprefix(":").split()


def _parts(page: Path, name: str) -> tuple[str, str, str]:
    found = re.fullmatch(
        rf"(.*<!-- {re.escape(name)}(?::[^\n]*)? -->\n)(.*)(<!-- end of {re.escape(name)} -->.*)",
        page.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    if found is None:
        raise ValueError(
            f"{page} has no place for it: <!-- {name} --> and <!-- end of {name} --> on lines of their own"
        )
    return found[1], found[2], found[3]


def _row(spec: CheckSpec) -> str:
    once = f", {words.plain(guarantees(spec)[0])}" if spec.varies == "transactions" else ""
    return words.title(spec.name) + once


def _cell(cells: Iterable[Mapping[str, Any]], target: str, spec: CheckSpec) -> Mapping[str, Any] | None:
    wanted = guarantees(spec)
    return next(_matching(cells, target, spec.name, wanted), None)


def _matching(
    cells: Iterable[Mapping[str, Any]], target: str, check: str, wanted: Sequence[str]
) -> Iterator[Mapping[str, Any]]:
    for cell in cells:
        asked = (cell["guarantee"], cell["producer_guarantee"])[: len(wanted)]
        if (cell["target"], cell["check"]) == (target, check) and asked == tuple(wanted):
            yield cell


def _place(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "not run"
    claim, verdict = words.claimed(cell["claim"]), Verdict(cell["verdict"])
    if cell["claim"] is None:
        return claim
    if verdict is Verdict.UNSUPPORTED:
        return f"{claim}: not induced"
    seen = cell["observed"]
    counted = f"{claim}: {seen['lost']} / {seen['duplicated']} of {seen['sent']:,}"
    return counted if verdict is Verdict.HELD else f"{counted}, **{verdict}**"


def _about(name: str, some: Mapping[str, str]) -> str:
    settings = [f"{key} {value}" for key, value in some.items() if key not in _NO_SETTING]
    what = " ".join(part for part in (some.get("product", ""), some.get("version", "")) if part)
    kind = some.get("kind", "broker")
    article = "an" if kind[0] in "aeiou" else "a"
    return f"`{name}` is {what}, {article} {kind}" + (f" ({', '.join(settings)})" if settings else "")
