"""Writes a run's reports into one folder, beside the histories that are there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brokerkit_conformance.history import History
from brokerkit_conformance.report.junit import junit
from brokerkit_conformance.report.page import page
from brokerkit_conformance.report.results import results

if TYPE_CHECKING:
    from brokerkit_conformance.cell import Cell
    from brokerkit_conformance.runner import Run


def write(run: Run, directory: Path, about: Mapping[str, Any] | None = None) -> Path:
    """`results.json`, `junit.xml` and `index.html`; returns the page's path.

    `about`: what else is known of the run: `command`, `seed`, `started` (epoch ms), `seconds`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    whole = results(run, about or {})
    (directory / "results.json").write_text(json.dumps(whole, indent=2, default=str) + "\n", encoding="ascii")
    (directory / "junit.xml").write_bytes(junit(run))
    index = directory / "index.html"
    html = page(run.cells, whole, lambda cell: _history(directory, cell))
    # A foreign id may hold what UTF-8 cannot carry.
    index.write_text(html, encoding="utf-8", errors="replace")
    return index


def _history(directory: Path, cell: Cell) -> History | None:
    """A cell's history; None for a cell that never had one."""
    file = directory / cell.history
    return History.load(file) if cell.history and file.is_file() else None
