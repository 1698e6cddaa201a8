"""The `brokerkit once mistakes` command: what each mistake costs, and that its cure costs nothing."""

from __future__ import annotations

import time

import typer
from rich.console import Console
from rich.panel import Panel

from brokerkit.cli.once import fail
from brokerkit.local.keeper import temporary_directory
from brokerkit_conformance.demo.books import DOLLARS
from brokerkit_conformance.demo.mistakes import MISTAKES, PAYMENTS, play
from brokerkit_conformance.demo.table import add, empty

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def mistakes() -> None:
    """Run seven common mistakes on a queue and books in files, and beside each the right way with the same faults."""
    console = Console()
    began = time.monotonic()
    console.print(
        Panel(
            f"{PAYMENTS} payments of ${DOLLARS} go through a queue in a file into books in another. Workers are killed "
            "with SIGKILL,\nor stopped, at the worst moment: those that make a mistake, and those that do not.",
            title="[bold]brokerkit once mistakes[/]",
            expand=False,
        )
    )
    played = []
    for number, mistake in enumerate(MISTAKES, 1):
        with temporary_directory("brokerkit-mistake-") as directory:
            try:
                played.append(play(mistake, directory))
            except TimeoutError as error:
                fail(f"{mistake.title}: {error}", 1)
        table = empty(f"{number}. {mistake.title}: {mistake.happens}", "workers")
        add(table, played[-1].wrong)
        add(table, played[-1].right)
        console.print()
        console.print(table)
    console.print(f"\n{time.monotonic() - began:.0f} seconds")
    if not all(each.shown for each in played):
        raise typer.Exit(1)
