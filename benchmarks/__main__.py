"""`python -m benchmarks [--json FILE] [--only GLOB] [--rounds N] [--scale X]`.

Real brokers, every side in the same run, alternated, medians over the rounds. Read the ratios, not the rates: the
broker runs beside the client, and only figures of one run count against each other.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

import brokerkit
from benchmarks.brokers import started
from benchmarks.measure import SideFailed, Work, measure, once, peers
from benchmarks.works import WORKS, Broker, costs, latencies
from brokerkit._compiled import COMPILED
from brokerkit.errors import BrokerkitError
from brokerkit.local.contract import StartFailed, Unavailable

CLIENTS = ("pika", "confluent-kafka", "boto3", "google-cloud-pubsub", "kombu", "aio-pika", "faststream")
ELSEWHERE = ("quixstreams",)
"""In the virtual environment of `make peers`, with a client library of its own."""


def main() -> int:
    asked = _arguments()
    console = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    about: dict[str, dict[str, str]] = {}
    unavailable: dict[str, str] = {}
    for name in WORKS:
        if not _wanted_of(name, asked.only):
            continue
        try:
            with started(name) as (broker, described):
                about[name] = described
                for row in _rows(broker, asked, console):
                    rows.append(row)
                    Console().print(_table([row]))
        except (Unavailable, StartFailed, BrokerkitError) as error:
            unavailable[name] = str(error)
            console.print(f"[red]{name} could not be brought up:[/] {error}")
    if asked.json:
        Path(asked.json).write_text(json.dumps(_whole(rows, about, unavailable, asked), indent=2) + "\n")
    return 1 if unavailable or any(row["failed"] for row in rows) else 0


def _rows(broker: Broker, asked: argparse.Namespace, console: Console) -> Iterator[dict[str, Any]]:
    """Works, then what guarantees cost, then latency; each row as soon as it is there."""

    def watch(line: str) -> None:
        console.print(f"[dim]{line}[/]", highlight=False)

    for work in WORKS[broker.name](broker, asked.scale):
        if fnmatch(work.name, asked.only):
            yield measure(work, asked.rounds, watch).as_dict()
    with brokerkit.connect(broker.url) as connected:
        producers, consumers = (
            [str(name) for name in brokerkit.Guarantee if name in offered]
            for offered in (connected.capabilities.producer_guarantees, connected.capabilities.consumer_guarantees)
        )
    for work in costs(broker, producers, consumers, asked.scale):
        if fnmatch(work.name, asked.only):
            yield _cost(measure(work, asked.rounds, watch).as_dict())
    work = latencies(broker, max(2.0, 5.0 * asked.scale))
    if fnmatch(work.name, asked.only):
        yield _latency(work, asked.rounds, watch)


def _cost(row: dict[str, Any]) -> dict[str, Any]:
    """The sides of this work are guarantees, held against the default one."""
    rates = row.pop("peers")
    base = rates.get("at_least_once")
    ratios = {name: rate / base for name, rate in rates.items()} if base else {}
    return {**row, "brokerkit": base, "guarantees": rates, "ratio_to_at_least_once": ratios, "peers": {}}


def _latency(work: Work, rounds: int, watch: Any) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {side.name: [] for side in work.sides}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for side in work.sides if number % 2 == 0 else reversed(work.sides):
            watch(f"{work.name}, round {number + 1} of {rounds}: {side.name}")
            try:
                found[side.name].append(once(work.url, side)[0])
            except SideFailed as error:
                failed[side.name] = str(error)
    medians = {
        name: {point: round(median(each[point] for each in values), 3) for point in values[0]}
        for name, values in found.items()
        if values
    }
    ours, raw = medians.get("brokerkit"), medians.get("raw")
    ratio = ours["p50"] / raw["p50"] if ours and raw else None
    return {
        "work": work.name,
        "unit": "ms",
        "brokerkit": ours,
        "raw": raw,
        "peers": {},
        "ratio_to_raw": ratio,
        "rounds": found,
        "failed": failed,
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("work", "brokerkit", "raw", "ratio", "bare", "others"):
        table.add_column(column, justify="left" if column in ("work", "others") else "right", overflow="fold")
    for row in rows:
        ratio = row.get("ratio_to_raw")
        others = [f"{name} {_figure(rate)}" for name, rate in {**row["peers"], **row.get("guarantees", {})}.items()]
        others += [f"[red]{name} failed[/]: {why.splitlines()[-1]}" for name, why in row["failed"].items()]
        table.add_row(
            row["work"],
            _figure(row["brokerkit"]),
            _figure(row["raw"]),
            f"{ratio:.2f}" if ratio else "",
            _figure(row.get("bare")),
            ", ".join(others),
        )
    return table


def _figure(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return " ".join(f"{name} {number:.2f}" for name, number in value.items()) + " ms"
    return f"{value:,.0f}/s"


def _whole(
    rows: list[dict[str, Any]],
    about: dict[str, dict[str, str]],
    unavailable: dict[str, str],
    asked: argparse.Namespace,
) -> dict[str, Any]:
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "brokerkit": brokerkit.__version__,
        "compiled": COMPILED,
        "clients": {**{name: _version(name) for name in CLIENTS}, **_elsewhere()},
        "brokers": about,
        "unavailable": unavailable,
        "rounds": asked.rounds,
        "scale": asked.scale,
        "rows": rows,
    }


def _elsewhere() -> dict[str, str]:
    found = peers()
    return {name: f"{found[name]} (confluent-kafka {found['confluent-kafka']})" for name in ELSEWHERE if name in found}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _wanted_of(broker: str, only: str) -> bool:
    """Whether `only` can match a work of this broker, before the broker is started."""
    head = only.partition(":")[0]
    return fnmatch(broker, head if ":" in only else head if "*" in head else f"{head}*")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--only", metavar="GLOB", default="*", help="works by name: 'rabbitmq*', '*: send*'")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side is measured")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of messages")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
