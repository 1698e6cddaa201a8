"""The table of who doubles under fire, and the page it stands in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from brokerkit_conformance.report import markdown

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "explanation" / "kafka-exactly-once.md"


@pytest.fixture
def fire(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.fire import __main__ as fire

    return fire


def test_the_page_has_a_row_for_every_copier_in_every_check(fire: Any) -> None:
    table = markdown.taken(PAGE, fire.NAME)
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    copiers = (fire.OURS, fire.EXAMPLE, fire.QUIX)
    assert [(row[0], row[1]) for row in rows] == [(f"| `{check}`", name) for check in fire.CHECKS for name in copiers]
    assert {tuple(row[3:]) for row in rows if row[1] == fire.OURS} == {("0", "0 |")}
