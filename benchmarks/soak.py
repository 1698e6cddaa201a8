"""`python -m benchmarks.soak [TARGET ...] [--messages N]`: memory stays flat over a million messages each way.

A producer and a consumer, each a process of its own, run side by side; each samples its own resident memory. Flat
means two things: the end, when nothing is left to come, is within `--slack` MiB of the least that the first half
needed (nothing piles up with the messages; what a client fetches ahead for a consumer that falls behind comes and
goes), and no sample is further above the warm first tenth than the bound on bytes in flight and the slack.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil

import brokerkit
from benchmarks.brokers import started
from benchmarks.measure import Call, run, topic_of
from benchmarks.ours import SUBSCRIPTION
from benchmarks.works import WORKS
from brokerkit.errors import BrokerkitError
from brokerkit.local.contract import StartFailed, Unavailable

SAMPLES = 100
IN_FLIGHT = 64 * 1024 * 1024
"""The default bound on bytes in flight, of producers and of consumers."""
MiB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Soaked:
    """One side's memory over the run, in bytes at equal distances."""

    side: str
    messages: int
    seconds: float
    memory: list[int]

    @property
    def warm(self) -> int:
        """The most that the first tenth needed."""
        return max(self.memory[: max(1, len(self.memory) // 10)])

    @property
    def growth(self) -> int:
        """How much more the end needs than the least that the first half did."""
        return max(0, self.memory[-1] - min(self.memory[: max(1, len(self.memory) // 2)]))

    def flat(self, slack: float) -> bool:
        return self.growth <= slack and max(self.memory) - self.warm <= IN_FLIGHT + slack

    def __str__(self) -> str:
        return (
            f"{self.side}: {self.messages:,} messages in {self.seconds:.0f} s, memory {self.warm / MiB:.1f} MiB when "
            f"warm, {max(self.memory) / MiB:.1f} MiB at most, {self.memory[-1] / MiB:.1f} MiB at the end"
        )


def soak(url: str, messages: int) -> list[Soaked]:
    """Sends and receives at the same time. Raises SideFailed."""
    with topic_of(url) as topic, ThreadPoolExecutor(2) as pool:
        sides = {
            "producer": pool.submit(run, Call("soak", "send_side", (url, topic, messages)), 3600.0),
            "consumer": pool.submit(run, Call("soak", "receive_side", (url, topic, messages)), 3600.0),
        }
        return [Soaked(name, messages, *side.result()[0]) for name, side in sides.items()]


def send_side(url: str, topic: str, messages: int) -> tuple[float, list[int]]:
    body = b"x" * 1024
    memory = _Memory(messages)
    with brokerkit.connect(url) as broker:
        with broker.producer(topic, max_in_flight=5000) as producer:
            for sent in range(0, messages, 100):
                last = producer.send_many([body] * 100)[-1]
                memory.sample(sent + 100)
            if producer.flush(120) or last.state != "confirmed":
                raise RuntimeError("not every message was confirmed")
    return memory.seconds, memory.samples


def receive_side(url: str, topic: str, messages: int) -> tuple[float, list[int]]:
    memory = _Memory(messages)
    done = 0
    with brokerkit.connect(url) as broker:
        with broker.consumer(topic, subscription=SUBSCRIPTION) as consumer:
            while done < messages:
                deliveries = consumer.receive(100, timeout=60)
                if not deliveries:
                    raise RuntimeError(f"only {done} of {messages} came")
                for delivery in deliveries:
                    delivery.ack()
                done += len(deliveries)
                memory.sample(done)
            if consumer.flush(60):
                raise RuntimeError("not every ack had its end")
    return memory.seconds, memory.samples


class _Memory:
    """Samples this process's resident memory at equal distances of messages."""

    def __init__(self, messages: int) -> None:
        self.samples: list[int] = []
        self._step = max(1, messages // SAMPLES)
        self._next = self._step
        self._process = psutil.Process()
        self._began = time.monotonic()

    def sample(self, done: int) -> None:
        if done >= self._next:
            self._next += self._step
            self.samples.append(self._process.memory_info().rss)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(WORKS), help=f"of {', '.join(WORKS)}")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--slack", type=float, default=24.0, help="MiB of growth that still count as flat")
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    flat = True
    for target in asked.targets:
        try:
            with started(target) as (broker, _):
                for soaked in soak(broker.url, asked.messages):
                    steady = soaked.flat(asked.slack * MiB)
                    flat &= steady
                    verdict = "flat" if steady else f"NOT FLAT, grew by {soaked.growth / MiB:.0f} MiB"
                    print(f"{target} {soaked}: {verdict}", flush=True)
                    found.setdefault(target, {})[soaked.side] = {"memory": soaked.memory, "growth": soaked.growth}
        except (Unavailable, StartFailed, BrokerkitError) as error:
            flat = False
            print(f"{target} could not be brought up: {error}", file=sys.stderr)
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump(found, file, indent=2)
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
