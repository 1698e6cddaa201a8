"""The guarantee matrix and the swap guide in Markdown: computed, put between markers, and compared by their shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from brokerkit_conformance.report import markdown, swap

from brokerkit.guarantees import FailurePoint

ROOT = Path(__file__).parents[3]
PAGE = "before\n<!-- guarantee matrix -->\nold\n<!-- end of guarantee matrix -->\nafter\n"


def cell(check: str, verdict: str = "held", consumer: str = "at_least_once", **claim: str) -> dict[str, Any]:
    return {
        "target": "shop",
        "check": check,
        "producer_guarantee": "at_least_once",
        "guarantee": consumer,
        "claim": claim or None,
        "verdict": verdict,
        "observed": {"lost": 0, "duplicated": 7, "sent": 1200},
    }


def table(*cells: dict[str, Any]) -> str:
    about = {"product": "Shop", "version": "2", "kind": "mock", "endpoint": "127.0.0.1:7", "acks": "all"}
    return markdown.table({"targets": {"shop": about}, "cells": cells})


def test_every_failure_point_is_a_row():
    columns, rows = markdown.shape(table())
    assert columns == ["shop"]
    assert list(rows) == markdown.row_names()
    named = {row.partition(",")[0].replace(" ", "_") for row in rows}
    assert named == {str(point) for point in FailurePoint} - {"none"}


@pytest.mark.parametrize(
    ("some", "expected"),
    [
        (cell("poison", loss="never", duplicate="never"), "once: 0 / 7 of 1,200"),
        (cell("poison", loss="never", duplicate="expected"), "doubles: 0 / 7 of 1,200"),
        (cell("poison", loss="possible", duplicate="possible"), "may be lost, may double: 0 / 7 of 1,200"),
        (cell("poison", "violated", loss="never", duplicate="never"), "once: 0 / 7 of 1,200, **violated**"),
        (cell("poison", "unsupported", loss="expected", duplicate="never"), "is lost: not induced"),
        (cell("poison", "unsupported"), "–"),
        (cell("poison", consumer="at_most_once", loss="possible"), "not run"),
        (cell("txn_killed", consumer="exactly_once", loss="never", duplicate="never"), "once: 0 / 7 of 1,200"),
    ],
)
def test_a_place_says_claim_and_count_and_what_is_wrong(some: dict[str, Any], expected: str):
    [line] = [line for line in table(some).splitlines() if line.startswith(f"| {some['check'].replace('_', ' ')}")]
    assert line.split("|")[2].strip() == expected


def test_a_target_is_named_with_its_settings_and_without_its_address():
    assert "`shop` is Shop 2, a mock (acks all)." in table()


def test_of_several_runs_the_last_one_that_judged_a_broker_counts():
    claim = {"loss": "never", "duplicate": "never"}
    runs = [
        {"targets": {"shop": {}, "inn": {}}, "cells": [cell("poison", "violated", **claim), cell("order", **claim)]},
        {"targets": {"shop": {}}, "cells": [cell("poison", **claim)]},
    ]
    both = markdown.joined(runs)
    assert list(both["targets"]) == ["shop", "inn"]
    assert both["cells"] == runs[1]["cells"]


def test_only_what_is_between_the_markers_is_written(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    for text in ("new", "| newer \\1 |"):
        markdown.put(page, markdown.NAME, text)
        assert markdown.taken(page, markdown.NAME) == text
        assert page.read_text().replace(f"\n{text}\n\n", "old\n") == PAGE


def test_a_page_without_markers_is_said_and_left_alone(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("before")
    with pytest.raises(ValueError, match="has no place for it: <!-- guarantee matrix -->"):
        markdown.put(page, markdown.NAME, "new")
    assert page.read_text() == "before"


def test_the_readme_has_a_run_of_every_broker_at_every_failure_point():
    columns, rows = markdown.shape(markdown.taken(ROOT / "README.md", markdown.NAME))
    assert {name.partition(":")[0] for name in columns} == {"sqlite", "rabbitmq", "kafka", "sqs", "pubsub"}
    assert list(rows) == markdown.row_names()
    assert not [row for row, places in rows.items() if "not run" in places]


def test_the_swap_guide_is_what_the_plugins_claim_now():
    page = ROOT / "docs/how-to/swap.md"
    urls = markdown.said(page, swap.NAME)
    assert markdown.taken(page, swap.NAME) == swap.guide(urls), "brokerkit conformance swap docs/how-to/swap.md"


def test_the_swap_guide_has_each_way_from_each_broker_to_each():
    text = markdown.taken(ROOT / "docs/how-to/swap.md", swap.NAME)
    names = [url.partition(":")[0] for url in markdown.said(ROOT / "docs/how-to/swap.md", swap.NAME)]
    heads = [line for line in text.splitlines() if line.startswith("| | ")]
    ways = {
        (here, there) for here, head in zip(names, heads, strict=True) for there in names if f"to `{there}`" in head
    }
    assert ways == {(here, there) for here in names for there in names if here != there}
    assert len(ways) == 30
