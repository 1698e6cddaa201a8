"""The `brokerkit demo` command: three ledgers, six checks, one page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from brokerkit.errors import BrokerkitError
from brokerkit.local.keeper import temporary_directory
from brokerkit_conformance.demo.books import Ledger
from brokerkit_conformance.demo.fetch import Fetch
from brokerkit_conformance.demo.ledger import WAYS, charge_all
from brokerkit_conformance.demo.table import add, empty
from brokerkit_conformance.progress import Progress
from brokerkit_conformance.report import matrix, write
from brokerkit_conformance.runner import Options, Run, run
from brokerkit_conformance.targets import understand

CHECKS = {
    "sqlite": ("consumer_killed_before_processing", "consumer_killed_before_ack", "consumer_frozen", "clean_shutdown"),
    "kafka": ("consumer_killed_before_ack", "confirm_lost"),
}
"""The few checks that tell most in a minute, by target."""

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def demo(
    payments: Annotated[int, typer.Option(min=100, help="How many payments of $50.")] = 1000,
    kills: Annotated[int, typer.Option(min=1, help="How many consumers are killed at work, each time.")] = 25,
    seed: Annotated[int, typer.Option(help="Decides when consumers die.")] = 7,
    checks: Annotated[bool, typer.Option(help="Run the checks after the ledgers.")] = True,
    report: Annotated[Path, typer.Option(help="Where the page and the histories go.")] = Path("out/demo"),
) -> None:
    """Charges payments while consumers are killed, in three ways; then lets the suite judge two brokers."""
    console = Console()
    began = time.monotonic()
    console.print(
        Panel(
            f"{payments:,} payments of $50 go through a queue in a file. Two processes charge them, and {kills} times\n"
            "the one at work is killed with SIGKILL, in the middle of whatever it does. What is in the books?",
            title="[bold]brokerkit demo[/]",
            expand=False,
        )
    )
    with Fetch(list(CHECKS) if checks else []) as fetch:
        ledgers = _ledgers(console, payments, kills, seed)
        console.print()
        console.print(_moral(ledgers))
        found = _checks(console, fetch, report, seed) if checks else None
    console.print(f"\n{time.monotonic() - began:.0f} seconds, seed {seed}.")
    if any(not ledger.as_promised or not ledger.finished for ledger in ledgers):
        raise typer.Exit(1)
    if found is not None and any(not cell.green for cell in found.cells):
        raise typer.Exit(1)


def _ledgers(console: Console, payments: int, kills: int, seed: int) -> list[Ledger]:
    """Runs the three ways, one after the other, with the table growing on the terminal."""
    ledgers: list[Ledger] = []

    def show_one(ledger: Ledger, live: Live) -> None:
        if ledger not in ledgers:
            ledgers.append(ledger)
        live.update(_table(ledgers), refresh=True)

    with Live(_table([]), console=console, auto_refresh=False) as live:
        for way in WAYS:
            with temporary_directory("brokerkit-demo-") as directory:
                charge_all(
                    way,
                    directory,
                    payments=payments,
                    kills=kills,
                    seed=seed,
                    watch=lambda ledger: show_one(ledger, live),
                )
    return ledgers


def _table(ledgers: list[Ledger]) -> Table:
    table = empty("The ledgers", "consumers ask for")
    for ledger in ledgers:
        add(table, ledger)
    return table


def _moral(ledgers: list[Ledger]) -> Text:
    broken = [ledger.way.title for ledger in ledgers if not ledger.as_promised]
    if broken:
        return Text(f"Not as promised: {', '.join(broken)}.", style="bold red")
    return Text(
        "As promised: the first never charges twice, the second never forgets anybody, and only a handler that\n"
        "keeps the payment's id in the same transaction as the charge gets every customer exactly once.",
        style="italic",
    )


def _checks(console: Console, fetch: Fetch, report: Path, seed: int) -> Run:
    """Runs the few checks on each target, and prints the matrix and the page's path."""
    console.print(
        "\n[bold]Do not take our word for it.[/] The conformance suite induces failures and holds claims against them."
    )
    whole = Run()
    started = time.time()
    with Progress(console) as progress:
        for name, checks in CHECKS.items():
            why = fetch.wait(name)
            if why:
                whole.unavailable[name] = why
                continue
            try:
                run([understand(name)], Options(checks=checks, seed=seed), report, whole, progress)
            except BrokerkitError as error:
                whole.unavailable[name] = str(error)
    about = {"command": "brokerkit demo", "seed": seed, "started": int(started * 1000)}
    page = write(whole, report, {**about, "seconds": round(time.time() - started, 1)})
    console.print(matrix(whole))
    console.print(f"The story of every cell: [bold]{page}[/]", soft_wrap=True)
    return whole
