"""A producer and a consumer that are cut off every five seconds for ten minutes lose nothing and leak nothing.

BROKERKIT_PROVE_SECONDS is how long; below a minute there are too few cuts to tell growth from noise.
"""

from __future__ import annotations

import json
import os
import queue
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from brokerkit_conformance.targets import Target, understand

SECONDS = float(os.environ.get("BROKERKIT_PROVE_SECONDS", "600"))
EVERY = 5.0
RATE = 300
MiB = 1024 * 1024
SLACK = 4 * MiB
"""By how much resident memory may differ between two quarters: what an allocator keeps, not what piles up."""

pytestmark = [pytest.mark.prove, pytest.mark.integration, pytest.mark.timeout(SECONDS + 600)]


class Subject:
    """The process under test, asked over its pipes."""

    def __init__(self, url: str) -> None:
        arguments = [url, "payments", str(RATE), str(int(RATE * (SECONDS + 60)))]
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("subject.py")), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, command: str, timeout: float = 60.0) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)
        answer = self._answers.get(timeout=timeout)
        assert answer, f"the process ended by itself, status {self.process.wait(10)}"
        found: dict[str, Any] = json.loads(answer)
        return found

    def end(self) -> None:
        """By its id, and whatever state it is in."""
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.process.stdout:
            self.process.stdin.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put("")


@pytest.fixture
def subject() -> Iterator[Callable[[str], Subject]]:
    started: list[Subject] = []

    def start(url: str) -> Subject:
        started.append(Subject(url))
        return started[-1]

    yield start
    for some in started:
        some.end()


@pytest.mark.parametrize("name", ["rabbitmq", "kafka"])
def test_a_connection_that_is_cut_every_five_seconds_loses_and_leaks_nothing(
    name: str, subject: Callable[[str], Subject]
) -> None:
    with Target(understand(name)) as target:
        assert target.local is not None
        assert target.proxy is not None
        proxy = target.proxy

        def cut() -> None:
            assert proxy.cut().wait(1.0)["connections"] >= 2, "producer and consumer were not both connected"

        hold_against(subject(target.local.url(through=True)), cut)


def test_a_file_that_another_process_locks_every_five_seconds_loses_and_leaks_nothing(
    subject: Callable[[str], Subject],
) -> None:
    with Target(understand("sqlite")) as target:
        assert target.local is not None
        file = "file:" + target.local.url().removeprefix("sqlite:///") + "?mode=rw"

        running = subject(target.local.url())

        def lock() -> None:
            with closing(sqlite3.connect(file, timeout=30.0, isolation_level=None, uri=True)) as other:
                other.execute("BEGIN IMMEDIATE")
                before = running.ask("sample")
                time.sleep(1.0)  # how long the others have to wait: the fault itself
                stored = running.ask("sample")["confirmed"] - before["confirmed"]
                other.execute("ROLLBACK")
            assert stored < RATE / 2, "the lock kept nobody waiting"

        hold_against(running, lock)


# ---------------------------------------------------------------- what both hold


def hold_against(subject: Subject, fault: Callable[[], None]) -> None:
    """Induces the fault every five seconds, and judges what the subject came through with."""
    samples = []
    began = time.monotonic()
    while (now := time.monotonic()) - began < SECONDS:
        time.sleep(EVERY - (now - began) % EVERY)
        samples.append(subject.ask("sample"))  # as long after the last fault as can be
        print(samples[-1])
        fault()
    end = subject.ask("finish 120", timeout=400)
    print(end)
    assert len(samples) >= SECONDS / EVERY - 2, "the machine was too busy to induce the faults in time"
    goes_on(samples)
    nothing_lost(end)
    nothing_leaked(samples)


def goes_on(samples: list[dict[str, Any]]) -> None:
    """After each fault both ends go on by themselves, before the next one."""
    for number, (before, after) in enumerate(pairwise(samples), 1):
        assert after["alive"], f"an exception ended one end after fault {number}"
        assert after["confirmed"] > before["confirmed"], f"nothing was confirmed after fault {number}: {after}"
        assert after["different"] > before["different"], f"nothing was received after fault {number}: {after}"


def nothing_lost(end: dict[str, Any]) -> None:
    assert end["sent"] > RATE * SECONDS * 0.5
    assert end["missing"] == []
    assert (end["pending"], end["refused"], end["unknown"]) == (0, 0, 0)
    assert end["confirmed"] == end["sent"] == end["different"]
    assert (end["unanswered"], end["unfinished"], end["depth"]) == (0, 0, 0)


def nothing_leaked(samples: list[dict[str, Any]]) -> None:
    """The last quarter holds no more than the second one, in which everything was warm."""
    quarter = len(samples) // 4
    warm, end = samples[quarter : 2 * quarter], samples[-quarter:]
    for what in ("threads", "descriptors"):
        assert max(some[what] for some in end) <= max(some[what] for some in warm), f"{what} grew: {warm} {end}"
    growth = median(some["memory"] for some in end) - median(some["memory"] for some in warm)
    assert growth <= SLACK, f"memory grew by {growth / MiB:.1f} MiB"
