"""Reports of runs made by hand: complete, consistent, self-contained, and readable."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from brokerkit_conformance.cell import Cell
from brokerkit_conformance.report import matrix, results, write
from brokerkit_conformance.runner import Run, judged
from rich.console import Console

from .histories import Script

NEVER = {"loss": "never", "duplicate": "never", "reorder": "possible", "condition": "", "source": ""}
TWICE = {**NEVER, "duplicate": "expected", "condition": "a dead consumer's messages come back", "source": "measured"}
WEAK = {**NEVER, "loss": "possible", "condition": "acks=1: the leader alone has it"}


def history(claim: dict[str, str] | None, guarantee: str = "at_least_once", target: str = "sqlite") -> Script:
    script = Script(
        target=target, check="consumer_killed_before_ack", claim=claim, guarantee=guarantee, asked="Is it done again?"
    )
    script.send("m-1").receive("m-1").effect("m-1").killed().handle("m-1", "consumer-2#1", attempt=2)
    return script.send("m-<b>2</b>").handle("m-<b>2</b>")


@pytest.fixture
def reported(tmp_path: Path) -> tuple[Run, Path]:
    """A run with a held, a violated, an inconclusive, an exceptional and an unsupported cell, and its reports."""
    scripts = [
        history(TWICE).drained(),
        history(NEVER, "at_most_once").drained(),
        history(TWICE, target="kafka").drained("deadline"),
        history({**WEAK, "duplicate": "possible"}, target="kafka:3nodes").drained(),
        Script(target="kafka", check="poison", asked="?").add("unsupported", "info", reason="it has no dead letters"),
    ]
    cells = []
    for number, script in enumerate(scripts):
        file = f"histories/cell {number}.jsonl"
        script.history.save(tmp_path / file)
        cells.append(judged(script.history, file))
    versions = {"sqlite": {"kind": "broker", "product": "SQLite"}, "kafka": {"kind": "emulator", "product": "Kafka"}}
    run = Run(cells, versions, {"sqs": "nothing to start it with"})
    write(run, tmp_path, {"seed": 7, "started": 1_764_000_000_000, "seconds": 12.5, "command": "run sqlite"})
    return run, tmp_path


def shown(run: Run) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(matrix(run))
    return console.export_text()


# ---------------------------------------------------------------- terminal


def test_the_matrix_says_counts_and_verdict_in_each_place(reported: tuple[Run, Path]) -> None:
    text = shown(reported[0])
    assert re.search(r"consumer killed before ack +at least once +0 lost, 1 twice: held", text)
    assert re.search(r"received at most once +0 lost, 1 twice: violated", text)
    assert "unsupported" in text


def test_whatever_is_not_green_is_said_with_its_reason(reported: tuple[Run, Path]) -> None:
    text = " ".join(shown(reported[0]).split())
    assert "violated sqlite, consumer killed before ack, received at most once: 1 effected twice" in text
    assert "inconclusive kafka, consumer killed before ack, at least once: the drain ended at its deadline" in text
    assert "unavailable sqs nothing to start it with" in text
    assert "exception kafka:3nodes, consumer killed before ack: at least once, and loss is possible: acks=1" in text


def test_one_unavailable_target_makes_the_run_red() -> None:
    assert not Run([Cell("a", "b", "c", "d", verdict="held")], {}, {"sqs": "no"}).green
    assert Run([Cell("a", "b", "c", "d", verdict="held")]).green


# ---------------------------------------------------------------- results.json


def test_results_hold_every_field_that_others_read(reported: tuple[Run, Path]) -> None:
    whole = json.loads((reported[1] / "results.json").read_text())
    assert (whole["seed"], whole["green"]) == (7, False)
    assert whole["summary"] == "2 held, 1 violated, 1 inconclusive, 1 unsupported"
    assert {"python", "platform", "brokerkit-mq", "brokerkit-mq-conformance", "pluggy"} <= set(whole["versions"])
    assert whole["targets"]["kafka"]["kind"] == "emulator"
    for cell in whole["cells"]:
        assert {
            "target", "check", "guarantee", "producer_guarantee", "claim", "verdict", "trials", "seed", "observed",
            "metrics", "fault", "history", "reason",
        } <= set(cell)  # fmt: skip
        assert set(cell["observed"]) == {
            "sent", "confirmed", "unknown", "refused", "received", "effects", "lost", "blocked", "duplicated",
            "redelivered", "reordered", "phantom",
        }  # fmt: skip
        assert set(cell["metrics"]) == {
            "duplicate_count", "message_loss_rate", "processing_latency_ms", "throughput_rps", "recovery_s",
        }  # fmt: skip
        assert set(cell["metrics"]["processing_latency_ms"]) == {"p50", "p95", "p99"}


def test_exceptions_are_listed_in_the_results(reported: tuple[Run, Path]) -> None:
    assert results(reported[0], {})["exceptions"] == [
        {
            "target": "kafka:3nodes",
            "check": "consumer killed before ack",
            "exception": "at least once, and loss is possible: acks=1: the leader alone has it",
        }
    ]


# ---------------------------------------------------------------- JUnit


def test_a_build_server_sees_failures_errors_and_skips(reported: tuple[Run, Path]) -> None:
    root = ET.parse(reported[1] / "junit.xml").getroot()
    suites = {suite.get("name"): suite.attrib for suite in root}
    assert (suites["sqlite"]["tests"], suites["sqlite"]["failures"]) == ("2", "1")
    assert (suites["kafka"]["errors"], suites["kafka"]["skipped"]) == ("1", "1")
    assert suites["sqs"]["errors"] == "1"
    case = root.find(".//testcase[@name='consumer_killed_before_ack[at_least_once-at_most_once]']/failure")
    assert case is not None
    assert "1 effected twice" in case.get("message", "")


def test_characters_that_xml_cannot_carry_do_not_break_it(tmp_path: Path) -> None:
    cell = Cell(
        "sqlite", "order", "at_least_once", "at_least_once", verdict="violated", reason="got \x00\x1b\ud800 <&>"
    )
    write(Run([cell]), tmp_path)
    failure = ET.parse(tmp_path / "junit.xml").getroot().find(".//failure")
    assert failure is not None
    assert failure.get("message", "").endswith("<&>")


# ---------------------------------------------------------------- the page


class Page(HTMLParser):
    """What of a page matters here: ids, links, tags, text, and that every tag is closed."""

    VOID = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given: dict[str, Any] = dict(attrs)
        self.tags.add(tag)
        if tag not in self.VOID:
            self._open.append(tag)
        if "id" in given:
            self.ids.add(given["id"])
        for name in ("href", "src"):
            if name in given:
                self.links.append(given[name])

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data + " "


@pytest.fixture
def page(reported: tuple[Run, Path]) -> Page:
    return Page((reported[1] / "index.html").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_from_elsewhere(page: Page) -> None:
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert all(link.startswith(("#cell-", "histories/")) for link in page.links)


def test_every_place_of_the_matrix_leads_to_its_story(page: Page) -> None:
    places = [link[1:] for link in page.links if link.startswith("#")]
    assert sorted(places) == sorted(page.ids)
    assert len(places) == 5


def test_every_story_leads_to_its_history(page: Page, reported: tuple[Run, Path]) -> None:
    names = [link.replace("%20", " ") for link in page.links if link.startswith("histories/")]
    assert len(names) == 5
    assert all((reported[1] / name).is_file() for name in names)


def test_a_story_says_what_was_asked_done_and_seen(page: Page) -> None:
    text = " ".join(page.text.split())
    for words in (
        "Is it done again?",
        "duplicate expected",
        "a dead consumer's messages come back",
        "kill of consumer-1#1",
        "consumer-2#1 does the work again",
        "1 effected twice, and the claim says never",
        "it has no dead letters",
        "nothing to start it with",
        "acks=1: the leader alone has it",
        "emulator",
        "2025-11-24",
    ):
        assert words in text, words


def test_a_message_id_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    script = Script(target="sqlite", check="order", claim=NEVER, asked="?").send("<script>x</script>").drained()
    script.history.save(tmp_path / "h.jsonl")
    write(Run([judged(script.history, "h.jsonl")]), tmp_path)
    page = Page((tmp_path / "index.html").read_text())
    assert "script" not in page.tags
    assert "<script>x</script>" in page.text


def test_a_run_without_any_cell_still_has_its_reports(tmp_path: Path) -> None:
    write(Run([], {}, {"kafka": "no Java"}), tmp_path)
    assert "no Java" in Page((tmp_path / "index.html").read_text()).text


def test_many_trails_are_cut_short_and_said(tmp_path: Path) -> None:
    script = Script(target="sqlite", check="order", claim=NEVER, asked="?")
    for number in range(75):
        script.send(f"m-{number}")
    script.drained().history.save(tmp_path / "h.jsonl")
    write(Run([judged(script.history, "h.jsonl")]), tmp_path)
    assert "15 more in the history" in Page((tmp_path / "index.html").read_text()).text
