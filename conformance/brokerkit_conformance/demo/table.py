"""Ledgers as rows of a table on the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from brokerkit_conformance.demo.books import Ledger


def empty(title: str, what: str) -> Table:
    table = Table(title=title, title_style="bold", title_justify="left")
    table.add_column(what, min_width=36)
    for column in ("ought to be", "charged", "killed", "never charged", "charged again"):
        table.add_column(column, justify="right")
    table.add_column("so", min_width=22)
    return table


def add(table: Table, ledger: Ledger) -> None:
    table.add_row(
        ledger.way.title,
        f"${ledger.ought:,}",
        f"${ledger.dollars:,}",
        str(ledger.killed),
        str(ledger.never) if ledger.seconds else "…",
        str(ledger.again) if ledger.seconds else "…",
        _outcome(ledger),
    )


def _outcome(ledger: Ledger) -> Text:
    if not ledger.seconds:
        return Text("charging", style="dim")
    if not ledger.finished:
        return Text("did not finish in time", style="yellow")
    difference = ledger.dollars - ledger.ought
    style = {"exact": "bold green"}.get(ledger.outcome, "bold red" if not ledger.as_promised else "bold yellow")
    return Text(ledger.outcome if not difference else f"{ledger.outcome}: {_signed(difference)}", style=style)


def _signed(dollars: int) -> str:
    return f"{'-' if dollars < 0 else '+'}${abs(dollars):,}"
