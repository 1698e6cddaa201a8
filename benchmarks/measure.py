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
from statistics import median
from typing import Any

import brokerkit
from benchmarks.ours import SUBSCRIPTION

SIDE_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Call:
    """A function of a module in this package, with its arguments."""

    module: str
    function: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Side:
    """Who does the work: `call` for a topic, after `fill` put there what is to be received."""

    name: str
    call: Callable[[str], Call]
    fill: Callable[[str], Call] | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """One row: the same work, done by several sides on the broker at `url`."""

    name: str
    url: str
    sides: Sequence[Side]


@dataclass(slots=True)
class Row:
    """What a work came to. Rates are medians over the rounds, in messages a second; `rounds` has all of them."""

    work: str
    rates: dict[str, float]
    rounds: dict[str, list[float]]
    failed: dict[str, str]
    peak_memory: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        ours, raw = self.rates.get("brokerkit"), self.rates.get("raw")
        peers = {name: rate for name, rate in self.rates.items() if name not in ("brokerkit", "raw", "bare")}
        return {
            "work": self.work,
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
    for number in range(rounds):
        turn = number % len(work.sides)
        for side in [*work.sides[turn:], *work.sides[:turn]]:
            if side.name in failed:
                continue
            watch(f"{work.name}, round {number + 1} of {rounds}: {side.name}")
            try:
                value, peak = once(work.url, side)
            except SideFailed as error:
                failed[side.name] = str(error)
                continue
            found[side.name].append(value)
            peaks[side.name] = max(peak, peaks.get(side.name, 0))
    rates = {name: round(median(values), 1) for name, values in found.items() if values}
    return Row(work.name, rates, found, failed, peaks)


def once(url: str, side: Side) -> tuple[Any, int]:
    """One measurement on a fresh topic: what the side's function returned, and its peak memory."""
    with topic_of(url) as topic:
        if side.fill is not None:
            run(side.fill(topic))
        return run(side.call(topic))


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
            [sys.executable, "-m", "benchmarks.side", call.module, call.function, arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise SideFailed(f"did not end within {timeout:.0f} s") from None
    if ended.returncode != 0:
        raise SideFailed(ended.stderr.strip()[-2000:] or f"ended with status {ended.returncode}")
    result = json.loads(ended.stdout.strip().splitlines()[-1])
    return result["value"], result["peak_memory"]
