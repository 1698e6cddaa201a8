"""`brokerkit relay`: sends what is in an outbox, until it is told to stop."""

from __future__ import annotations

import logging
import re
import signal
import sys
from typing import Annotated

import typer

import brokerkit
from brokerkit.cli.once import OUTBOX, fail
from brokerkit.errors import BrokerkitError
from brokerkit.once import Relay


def relay(
    store: Annotated[str, typer.Argument(metavar="STORE", help="postgresql://user@host/database or sqlite:///file.db")],
    broker: Annotated[str, typer.Argument(metavar="BROKER", help="URL of the broker to send to.")],
    outbox: OUTBOX = "default",
    share: Annotated[str, typer.Option(metavar="N/M", help="The n-th of m relays that share the work.")] = "1/1",
    until_empty: Annotated[bool, typer.Option("--until-empty", help="Stop once nothing waits.")] = False,
) -> None:
    """Send what is in an outbox and delete it once the broker has it. Ctrl-C or SIGTERM ends it in order."""
    matched = re.fullmatch(r"(\d+)/(\d+)", share)
    if matched is None:
        fail(f"--share takes N/M, such as 2/4, not {share!r}", 2)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        with brokerkit.connect(broker) as target:
            made = Relay(store, target, outbox=outbox, share=(int(matched[1]), int(matched[2])))
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: made.stop())
            made.run(until_empty=until_empty)
    except BrokerkitError as error:
        fail(str(error), 1)
    typer.echo(f"{made.sent} sent")
