"""Names in the output each mutant that was caught, and the check that caught it, with its reason."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    caught = [
        value
        for report in terminalreporter.stats.get("passed", ())
        if report.when == "call"
        for name, value in report.user_properties
        if name == "mutant"
    ]
    if caught:
        terminalreporter.section("mutants caught")
        for line in caught:
            terminalreporter.write_line(line)
