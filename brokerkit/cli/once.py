"""`brokerkit once`: the tables of a store."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, NoReturn

import typer

import brokerkit
from brokerkit import once
from brokerkit.errors import BrokerkitError, ConnectionLost
from brokerkit.once.stores.contract import VERSION
from brokerkit.once.tables import LEAST_WINDOW

app = typer.Typer(no_args_is_help=True, help="The tables by which effects happen exactly once.")

_URL = Annotated[str, typer.Argument(metavar="URL", help="postgresql://user@host/database or sqlite:///file.db")]
OUTBOX = Annotated[str, typer.Option("--outbox", metavar="NAME", help="Which outbox, where there are several.")]
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@app.command()
def init(
    url: _URL,
    show: Annotated[bool, typer.Option("--print", help="Print the SQL instead, and connect to nothing.")] = False,
) -> None:
    """Make the tables, or bring them to the version wanted; say what a commit survives there."""
    try:
        if show:
            typer.echo(once.script(url), nl=False)
            return
        before = once.init(url)
        found = once.durability(url)
    except BrokerkitError as error:
        fail(str(error), 1)
    typer.echo(f"tables of version {VERSION}{', as before' if before == VERSION else ''}")
    said = ", ".join(f"{name} = {value}" for name, value in found.settings.items())
    typer.echo(f"a commit survives {found.survives.replace('_', ' ')} ({said}){f': {found.why}' if found.why else ''}")


@app.command()
def prune(
    url: _URL,
    window: Annotated[
        str, typer.Option("--older-than", metavar="TIME", help="30d, 12h, 90m: what was seen longer ago goes.")
    ],
    brokers: Annotated[
        list[str] | None,
        typer.Option(
            "--broker", metavar="URL", help="Whose messages these are: the window must outlast what it keeps."
        ),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also with less than an hour, or than the broker needs.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Rows removed in one transaction.")] = 1000,
    every: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Again whenever so long has passed, until Ctrl-C or SIGTERM."),
    ] = None,
) -> None:
    """Forget the messages that were seen longer ago than brokers, and senders, may repeat them."""
    asked = _time("--older-than", window)
    pause = None if every is None else _time("--every", every)
    try:
        least = max([LEAST_WINDOW, *map(_horizon, brokers or ())])

        def removed() -> int:
            return once.prune(url, asked, least=least, anyway=anyway, batch=batch)

        typer.echo(f"{removed()} forgotten")
        if pause:
            _repeat(removed, pause)
    except BrokerkitError as error:
        fail(str(error), 1)


def _repeat(removed: Callable[[], int], pause: timedelta) -> NoReturn:
    """A store that is away for a while is asked again the next time; what else goes wrong ends it. To be killed at any
    moment: each batch is a transaction."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    while True:
        time.sleep(pause.total_seconds())
        try:
            logging.info("%d forgotten", removed())
        except ConnectionLost as error:
            logging.warning("%s; tried again in %s", error, pause)


def _time(option: str, text: str) -> timedelta:
    matched = re.fullmatch(r"(\d+)([smhd])", text)
    if matched is None:
        fail(f"{option} takes a number with s, m, h or d, not {text!r}", 2)
    return timedelta(**{_UNITS[matched[2]]: int(matched[1])})


def _horizon(url: str) -> timedelta:
    with brokerkit.connect(url) as broker:
        properties = broker.claims().properties
    if properties.retention_seconds is None:
        scheme = url.partition(":")[0]
        typer.echo(
            f"{scheme}: what is not acked is kept until it is, or for a time that is not known here, and comes again "
            "when a consumer does: the window has to outlast the longest time without one",
            err=True,
        )
    return once.horizon(properties)


@app.command()
def lag(url: _URL, outbox: OUTBOX = "default") -> None:
    """What an outbox still holds: messages that wait, the age of the oldest in seconds, messages that were refused."""
    try:
        found = once.Outbox(url, outbox).lag()
    except BrokerkitError as error:
        fail(str(error), 1)
    typer.echo(f"{found.rows} waiting, the oldest for {found.seconds:.1f} s, {found.refused} refused")


@app.command()
def refused(
    url: _URL,
    outbox: OUTBOX = "default",
    again: Annotated[bool, typer.Option("--again", help="Send them again, in their old order.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Delete them: they are never sent.")] = False,
) -> None:
    """The messages that the broker refused, each with the reason; those behind them with their key wait too."""
    if again and drop:
        fail("--again and --drop exclude each other", 2)
    try:
        box = once.Outbox(url, outbox)
        if again or drop:
            typer.echo(f"{box.release(drop=drop)} {'dropped' if drop else 'wait again'}")
            return
        for topic, id, reason in box.refused():
            typer.echo(f"{topic}  {id}  {reason}")
    except BrokerkitError as error:
        fail(str(error), 1)


def fail(text: str, code: int) -> NoReturn:
    typer.secho(text, err=True, fg="red")
    raise typer.Exit(code)
