"""JUnit XML, so that any build server shows the matrix: a suite per target, a case per cell."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from brokerkit_conformance.report import words
from brokerkit_conformance.verdict import Verdict

if TYPE_CHECKING:
    from brokerkit_conformance.cell import Cell
    from brokerkit_conformance.runner import Run

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

ELEMENT = {
    Verdict.VIOLATED: "failure",
    Verdict.NOT_WITNESSED: "failure",
    Verdict.INCONCLUSIVE: "error",
    Verdict.UNSUPPORTED: "skipped",
    Verdict.SKIPPED: "skipped",
}
"""What a verdict is called there; `held` is a case without any of these."""


def junit(run: Run) -> bytes:
    root = ET.Element("testsuites", name="brokerkit conformance")
    for target in dict.fromkeys(cell.target for cell in run.cells):
        _suite(root, target, [cell for cell in run.cells if cell.target == target])
    for name, why in run.unavailable.items():
        suite = ET.SubElement(root, "testsuite", name=name, tests="1", failures="0", errors="1", skipped="0")
        case = ET.SubElement(suite, "testcase", classname=name, name="start")
        ET.SubElement(case, "error", message=_clean(why), type="unavailable")
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _suite(root: ET.Element, target: str, cells: list[Cell]) -> None:
    kinds = [ELEMENT.get(Verdict(cell.verdict)) for cell in cells]
    suite = ET.SubElement(
        root,
        "testsuite",
        name=target,
        tests=str(len(cells)),
        failures=str(kinds.count("failure")),
        errors=str(kinds.count("error")),
        skipped=str(kinds.count("skipped")),
        time=f"{sum(cell.seconds for cell in cells):.3f}",
    )
    for cell in cells:
        _case(suite, cell)


def _case(suite: ET.Element, cell: Cell) -> None:
    store = f"-{cell.store}" if cell.store else ""
    name = f"{cell.check}[{cell.producer_guarantee}-{cell.guarantee}{store}]"
    case = ET.SubElement(suite, "testcase", classname=cell.target, name=name, time=f"{cell.seconds:.3f}")
    kind = ELEMENT.get(Verdict(cell.verdict))
    if kind is not None:
        ET.SubElement(case, kind, message=_clean(f"{cell.verdict}: {cell.reason}"), type=cell.verdict.replace(" ", "-"))
    told = [words.line(cell), *cell.done, *cell.seen, *([f"history: {cell.history}"] if cell.history else [])]
    ET.SubElement(case, "system-out").text = _clean("\n".join(told))


def _clean(text: str) -> str:
    """Without the characters that XML cannot carry."""
    return _NOT_XML.sub("\ufffd", text)
