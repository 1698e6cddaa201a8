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
from brokerkit.local.contract import Unavailable
from brokerkit_conformance.checks.registry import checks, checks_of
from brokerkit_conformance.history import History
from brokerkit_conformance.progress import Progress
from brokerkit_conformance.report import markdown, matrix, swap, write
from brokerkit_conformance.runner import AT_ONCE, TARGETS_AT_ONCE, Options, Run, judged, run
from brokerkit_conformance.stores import Stores
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
    at_once: Annotated[int, typer.Option(min=1, help="Cells at the same time, of all targets.")] = AT_ONCE,
    targets_at_once: Annotated[int, typer.Option(min=1, help="Targets at the same time.")] = TARGETS_AT_ONCE,
    store: Annotated[
        list[str] | None,
        typer.Option(help="Where the checks of effects in a store have them, NAME or URL; may be repeated."),
    ] = None,
) -> None:
    """Runs the checks against each target. Exit 0 only if every cell is held, unsupported or skipped. Interrupted, it
    reports the cells that had ended, with exit 130."""
    console = Console()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        asked = [understand(name) for name in targets]
        stores = Stores(store or ())
        stores.provision()
    except (BrokerkitError, Unavailable) as error:
        console.print(f"[red]{error}[/]")
        raise typer.Exit(2) from None
    options = Options(
        checks=check or (),
        guarantees=[name.replace("-", "_") for name in guarantee or ()],
        seed=random.SystemRandom().randrange(1 << 31) if seed is None else seed,
        scale=scale,
        at_once=at_once,
        targets_at_once=targets_at_once,
        stores=stores,
    )
    started = time.time()
    found = Run()
    interrupted = False
    with stores, Progress(console) as progress:
        try:
            run(asked, options, report, found, progress)
        except KeyboardInterrupt:
            interrupted = True
    about = {
        "command": " ".join(["brokerkit", "conformance", "run", *(some.name for some in asked)]),
        "seed": options.seed,
        "started": int(started * 1000),
        "seconds": round(time.time() - started, 1),
        "stores": stores.versions,
    }
    page = write(found, report, about)
    console.print(matrix(found))
    console.print(f"seed {options.seed}   {page}", highlight=False)
    raise typer.Exit(130 if interrupted else 0 if found.green else 1)


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
    Console(stderr=True).print(matrix(Run([cell])))
    json.dump(cell.as_dict(), sys.stdout, indent=2, default=str)
    typer.echo()
    raise typer.Exit(0 if cell.green else 1)


@app.command("matrix")
def matrix_command(
    reports: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="The reports of runs.")],
    page: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A Markdown page with its markers.")],
) -> None:
    """Writes the guarantee matrix of runs into a page, between its markers. A broker that several runs judged is shown
    as the last of them saw it."""
    try:
        results = [json.loads((report / "results.json").read_text(encoding="ascii")) for report in reports]
        markdown.put(page, markdown.NAME, markdown.table(markdown.joined(results)))
    except (OSError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


@app.command("swap")
def swap_command(
    page: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A Markdown page with its markers.")],
) -> None:
    """Writes into a page what changes from each broker to each other, from the claims of the URLs in its marker."""
    try:
        markdown.put(page, swap.NAME, swap.guide(markdown.said(page, swap.NAME)))
    except (BrokerkitError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(f"signal {number}")
