"""`brokerkit conformance`: run the suite, list what it has, judge a saved history again."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from brokerkit.errors import BrokerkitError
from brokerkit_conformance.checks.registry import checks, checks_of
from brokerkit_conformance.history import History
from brokerkit_conformance.progress import Progress
from brokerkit_conformance.report import matrix, write
from brokerkit_conformance.runner import AT_ONCE, Options, Run, judged, run
from brokerkit_conformance.targets import local_brokers, understand

app = typer.Typer(
    no_args_is_help=True,
    help="Induces failures against real brokers and holds what the plugins claim against what was seen.",
)


@app.command("run")
def run_command(
    targets: Annotated[
        list[str], typer.Argument(help="NAME, NAME:VERSION, NAME:3nodes?setting=value (see list), or a URL")
    ],
    check: Annotated[list[str] | None, typer.Option(help="Only checks whose name matches; may be repeated.")] = None,
    guarantee: Annotated[
        list[str] | None, typer.Option(help="Only cells where either end asks for this; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats the random choices of a run.")] = None,
    report: Annotated[Path, typer.Option(help="Where results, histories and the page go.")] = Path("out/conformance"),
    scale: Annotated[int, typer.Option(min=1, help="Multiplies every check's trials.")] = 1,
    at_once: Annotated[int, typer.Option(min=1, help="Cells that run at the same time.")] = AT_ONCE,
) -> None:
    """Runs the checks against each target. Exit 0 only if every cell is held, unsupported or skipped."""
    console = Console()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        asked = [understand(name) for name in targets]
    except BrokerkitError as error:
        console.print(f"[red]{error}[/]")
        raise typer.Exit(2) from None
    options = Options(
        checks=check or (),
        guarantees=[name.replace("-", "_") for name in guarantee or ()],
        seed=random.SystemRandom().randrange(1 << 31) if seed is None else seed,
        scale=scale,
        at_once=at_once,
    )
    started = time.time()
    with Progress(console) as progress:
        found = run(asked, options, report, progress)
    about = {
        "command": " ".join(["brokerkit", "conformance", "run", *(some.name for some in asked)]),
        "seed": options.seed,
        "started": int(started * 1000),
        "seconds": round(time.time() - started, 1),
    }
    page = write(found, report, about)
    console.print(matrix(found))
    console.print(f"seed {options.seed}   {page}", highlight=False)
    raise typer.Exit(0 if found.green else 1)


@app.command("list")
def list_command() -> None:
    """The checks, what each asks, and the targets that can be brought up here."""
    console = Console()
    shown = set()
    for name, spec in checks().items():
        shown.add(name)
        console.print(f"[bold]{name}[/]  {spec.asked}", soft_wrap=True)
    for target, (plugin, _) in sorted(local_brokers().items()):
        more = [name for name in checks_of(plugin.name) if name not in shown]
        console.print(f"target [bold]{target}[/]{'  with ' + ', '.join(more) if more else ''}")


@app.command("check")
def check_command(
    history: Annotated[Path, typer.Argument(exists=True, help="A history, or a folder of one cell's journals.")],
) -> None:
    """Judges a saved history again, without a broker."""
    try:
        cell = judged(History.load(history), str(history))
    except ValueError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    Console(stderr=True).print(matrix(Run([cell], {}, {})))
    json.dump(cell.as_dict(), sys.stdout, indent=2, default=str)
    typer.echo()
    raise typer.Exit(0 if cell.green else 1)


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(f"signal {number}")
