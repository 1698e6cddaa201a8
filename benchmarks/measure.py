"""Rounds, alternation and medians: how figures become comparable.

Every side runs in a fresh process, on a topic of its own that is removed afterwards. Each round measures every side
once; the order turns with each round, so that a machine that slows down or warms up does so for all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from statistics import median
from typing import Any

import brokerkit
from benchmarks.ours import SUBSCRIPTION

SIDE_TIMEOUT = 300.0
PEERS = Path(__file__).parents[1] / ".venv-peers"
"""Libraries that cannot live beside our own dependencies: `make peers`."""
PEERS_PYTHON = PEERS / "bin" / "python"


def peers() -> Mapping[str, str]:
    """What is installed there, with versions; nothing before `make peers`."""
    return {found.name: found.version for found in distributions(path=[*map(str, PEERS.glob("lib/*/site-packages"))])}


@dataclass(frozen=True, slots=True)
class Call:
    """A function of a module in this package, with its arguments. `python`: who runs it."""

    module: str
    function: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    python: str = sys.executable


@dataclass(frozen=True, slots=True)
class Side:
    """Who does the work: `call` for a topic, after `fill` put there what is to be received."""

    name: str
    call: Callable[[str], Call]
    fill: Callable[[str], Call] | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """One row: the same work, done by several sides on the broker at `url`. `at`: its place on a curve, where it is
    one of several that differ in this number only. `warm_ups`: rounds before those that count, for a broker on a
    Java machine that has still to compile itself, each up to twice as fast as the one before."""

    name: str
    url: str
    sides: Sequence[Side]
    at: float | None = None
    warm_ups: int = 0


@dataclass(slots=True)
class Row:
    """What a work came to. Rates are medians over the rounds, in messages a second; `rounds` has all of them."""

    work: str
    rates: dict[str, float]
    rounds: dict[str, list[float]]
    failed: dict[str, str]
    peak_memory: dict[str, int]
    at: float | None = None

    def as_dict(self) -> dict[str, Any]:
        ours, raw = self.rates.get("brokerkit"), self.rates.get("raw")
        peers = {name: rate for name, rate in self.rates.items() if name not in ("brokerkit", "raw", "bare")}
        return {
            "work": self.work,
            "at": self.at,
            "brokerkit": ours,
            "raw": raw,
            "bare": self.rates.get("bare"),
            "peers": peers,
            "ratio_to_raw": ours / raw if ours and raw else None,
            "ratio_to_peers": {name: ours / rate for name, rate in peers.items()} if ours else {},
            "rounds": self.rounds,
            "failed": self.failed,
            "peak_memory": self.peak_memory,
        }


class SideFailed(Exception):
    """A measurement that came to nothing; the text is the end of what its process said."""


def measure(work: Work, rounds: int, watch: Callable[[str], None] = lambda _: None) -> Row:
    found: dict[str, list[float]] = {side.name: [] for side in work.sides}
    failed: dict[str, str] = {}
    peaks: dict[str, int] = {}
    for number in range(-work.warm_ups, rounds):
        turn = number % len(work.sides)
        for side in [*work.sides[turn:], *work.sides[:turn]]:
            if side.name in failed:
                continue
            watch(f"{work.name}, {_round(number, rounds)}: {side.name}")
            try:
                value, peak = once(work.url, side)
            except SideFailed as error:
                failed[side.name] = str(error)
                continue
            if number < 0:
                continue
            found[side.name].append(value)
            peaks[side.name] = max(peak, peaks.get(side.name, 0))
    rates = {name: round(median(values), 1) for name, values in found.items() if values}
    return Row(work.name, rates, found, failed, peaks, work.at)


def _round(number: int, rounds: int) -> str:
    return f"round {number + 1} of {rounds}" if number >= 0 else "warming up"


def once(url: str, side: Side) -> tuple[Any, int]:
    """One measurement on a fresh topic: what the side's function returned, and its peak memory."""
    with topic_of(url) as topic:
        if side.fill is not None:
            run(side.fill(topic))
        return run(side.call(topic))


def ended(rows: Sequence[Mapping[str, Any]], file: str | None) -> int:
    """Writes the rows, where they are wanted; the status of the program."""
    if file:
        Path(file).write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if any(row["failed"] for row in rows) else 0


_topics = iter(range(1_000_000))


@contextmanager
def topic_of(url: str) -> Iterator[str]:
    """A topic with the one subscription of the benchmarks, removed afterwards."""
    topic = f"bench-{next(_topics)}"
    with brokerkit.connect(url) as broker:
        broker.delete(topic)
        broker.declare(topic, subscriptions=[SUBSCRIPTION])
    try:
        yield topic
    finally:
        with brokerkit.connect(url) as broker:
            broker.delete(topic)


def run(call: Call, timeout: float = SIDE_TIMEOUT) -> tuple[Any, int]:
    """Runs one call in a process of its own. Raises SideFailed."""
    arguments = json.dumps({"args": call.args, "kwargs": dict(call.kwargs)})
    try:
        ended = subprocess.run(
            [call.python, "-m", "benchmarks.side", call.module, call.function, arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except FileNotFoundError:
        raise SideFailed(f"{call.python} is not there: `make peers` installs what {call.module} needs") from None
    except subprocess.TimeoutExpired:
        raise SideFailed(f"did not end within {timeout:.0f} s") from None
    if ended.returncode != 0:
        raise SideFailed(ended.stderr.strip()[-2000:] or f"ended with status {ended.returncode}")
    result = json.loads(ended.stdout.strip().splitlines()[-1])
    return result["value"], result["peak_memory"]
