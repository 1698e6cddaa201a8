"""The pytest fixtures' brokers end with their pytest, also when that is killed in the middle of a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from .conftest import marked, within

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

TESTS = """
import time
from pathlib import Path

import brokerkit
import pytest


@pytest.mark.parametrize("number", range({workers}))
def test_holds_a_broker({broker}, number):
    topic = {broker}.name("payments")
    with brokerkit.connect({broker}.url) as broker:
        broker.declare(topic, subscriptions=["ledger"])
        with broker.producer(topic) as producer:
            producer.send(b"50").result(30)
            Path(__file__).with_name(f"at-{{number}}").touch()
            time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """A folder for temporary directories; whatever still runs there at the end is ended."""
    place = tmp_path / "temporary"
    place.mkdir()
    yield place
    for pid in ours(place):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def ours(temporary: Path) -> list[int]:
    return [pid for pid in marked(str(temporary)) if pid != os.getpid()]


def programs(temporary: Path) -> list[str]:
    """The command lines of what runs there."""
    found = []
    for pid in ours(temporary):
        try:
            found.append(" ".join(psutil.Process(pid).cmdline()))
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize("options", [[], ["-n2"]], ids=["alone", "with two workers"])
@pytest.mark.parametrize(("broker", "program"), [("rabbitmq", "beam.smp"), ("kafka", "kafka.Kafka")])
def test_a_killed_pytest_leaves_no_broker_and_no_temporary_data_after_ten_seconds(
    broker: str, program: str, options: list[str], tmp_path: Path, temporary: Path
) -> None:
    brokers = 2 if options else 1
    (tmp_path / "test_it.py").write_text(TESTS.format(broker=broker, workers=brokers))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(temporary / "base")]
    said = tmp_path / "said"
    with said.open("wb") as output:
        killed = subprocess.Popen(
            [*command, *options, "test_it.py"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(temporary)},
            cwd=tmp_path,
        )

    def holding() -> bool:
        return len(list(tmp_path.glob("at-*"))) == brokers

    try:
        assert within(90, lambda: holding() or killed.poll() is not None)
        assert holding(), said.read_text()
        assert sum(program in line for line in programs(temporary)) == brokers
    finally:
        killed.kill()
        killed.wait(10)
    assert within(10, lambda: not list(temporary.glob("brokerkit-*"))), programs(temporary)
    assert not any(program in line or "epmd" in line for line in programs(temporary))
    assert within(30, lambda: not ours(temporary)), programs(temporary)  # the workers themselves take their time
