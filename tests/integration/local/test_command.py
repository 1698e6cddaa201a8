"""`brokerkit up`, `down` and `ps`, ended in order and by SIGKILL."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from .conftest import client, marked, within

pytestmark = pytest.mark.integration
URL = re.compile(r"^(\S+)  ready  (\S+)  (.+, \d+\.\d s)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch) -> Iterator[None]:
    """A state folder and a folder for temporary directories of its own; whatever still runs there is ended."""
    temporary = Path(tempfile.mkdtemp(prefix="bk-", dir="/tmp"))
    monkeypatch.setenv("BROKERKIT_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("TMPDIR", str(temporary))
    yield
    for pid in marked(str(temporary)):
        if pid != os.getpid():
            with _gone_is_fine():
                os.kill(pid, signal.SIGKILL)
    subprocess.run(["rm", "-rf", temporary], check=True)


def _gone_is_fine():
    import contextlib

    return contextlib.suppress(ProcessLookupError)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "brokerkit.cli", *arguments]


def brokerkit(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=90)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def start(*arguments: str) -> tuple[subprocess.Popen[str], list[tuple[str, str, str]]]:
    """Runs `brokerkit up` until all its brokers are ready; returns it and the lines' name, url and rest."""
    process = subprocess.Popen(command("up", *arguments), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    ready: list[tuple[str, str, str]] = []
    while len(ready) < len([argument for argument in arguments if not argument.startswith("-")]):
        line = process.stdout.readline()
        assert line, "brokerkit up ended"
        ready += URL.findall(line)
    return process, ready


def ours() -> list[int]:
    return [pid for pid in marked(os.environ["TMPDIR"]) if pid != os.getpid()]


def test_fetch_says_what_it_has_and_starts_nothing():
    said = brokerkit("fetch", "kafka", "sqlite").splitlines()
    assert [line.partition(":")[0] for line in said] == ["kafka", "sqlite"]
    assert said[0].startswith("kafka: Apache Kafka 4.")
    assert ours() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_prints_urls_that_work_and_ends_without_a_trace_on_a_signal(number):
    process, ready = start("kafka", "rabbitmq")
    assert [name for name, _, _ in ready] == ["kafka", "rabbitmq"]
    assert ready[0][2].startswith("Apache Kafka 4.")
    assert all(client(name, url).answers(5) for name, url, _ in ready)
    assert "foreground" in brokerkit("ps")
    process.send_signal(number)
    assert process.wait(30) == 0
    process.stdout.close()
    assert within(10, lambda: not ours())
    assert list(Path(os.environ["TMPDIR"]).iterdir()) == []
    assert "nothing is up" in brokerkit("ps")


@pytest.mark.parametrize("targets", [["rabbitmq"], ["kafka"], ["rabbitmq", "--nodes=3"]], ids=" ".join)
def test_a_killed_up_leaves_no_process_and_no_temporary_data_after_ten_seconds(targets):
    process, _ = start(*targets)
    assert len(ours()) >= 2
    process.kill()
    process.wait(10)
    process.stdout.close()
    assert within(10, lambda: not ours()), [psutil.Process(pid).cmdline() for pid in ours()]
    assert within(10, lambda: not list(Path(os.environ["TMPDIR"]).iterdir()))
    assert "nothing is up" in brokerkit("ps")


def test_an_up_killed_while_it_starts_leaves_nothing_either():
    process = subprocess.Popen(command("up", "rabbitmq"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert within(30, lambda: any("beam" in " ".join(psutil.Process(pid).cmdline()) for pid in ours()))
    process.kill()
    process.wait(10)
    assert within(10, lambda: not ours())
    assert within(10, lambda: not list(Path(os.environ["TMPDIR"]).iterdir()))


def test_detached_brokers_outlive_the_command_and_go_down_by_name():
    said = brokerkit("up", "--detach", "kafka", "rabbitmq:4.0")
    assert {name for name, _, _ in URL.findall(said)} == {"kafka", "rabbitmq:4.0"}
    assert all(client(name, url).answers(5) for name, url, _ in URL.findall(said))
    listed = brokerkit("ps")
    assert "rabbitmq:4.0" in listed
    assert "detached" in listed
    assert "up already" in brokerkit("up", "--detach", "kafka")
    assert "other options" in brokerkit("up", "--detach", "kafka", "--nodes", "3", code=1)
    assert brokerkit("down", "kafka") == "kafka  down\n"
    assert "kafka" not in brokerkit("ps")
    assert "not up: kafka" in brokerkit("down", "kafka", code=1)
    brokerkit("down")
    assert within(10, lambda: not ours())
    assert list(Path(os.environ["TMPDIR"]).iterdir()) == []


def test_a_supervisor_that_was_killed_takes_its_broker_along():
    brokerkit("up", "--detach", "rabbitmq")
    pid = int(re.search(r"process (\d+)", brokerkit("ps"))[1])
    os.kill(pid, signal.SIGKILL)
    assert within(10, lambda: not ours())
    assert "nothing is up" in brokerkit("ps")


def test_an_entry_whose_process_is_gone_is_noticed_and_removed():
    state = Path(os.environ["BROKERKIT_STATE"])
    state.mkdir()
    broker = '{"target": "kafka", "url": "kafka://h:1", "product": "K", "version": "4", "provider": "x", "pids": [0]}'
    entry = state / f"{os.getpid()}.json"  # this process, but of another time
    entry.write_text(f'{{"pid": {os.getpid()}, "started": 1.0, "detached": true, "brokers": [{broker}]}}')
    assert "stale entry of kafka removed" in brokerkit("ps")
    assert not entry.exists()


def test_a_broker_that_does_not_start_ends_detached_with_its_reason():
    said = brokerkit("up", "--detach", "rabbitmq", "--set", "no_such_setting=1", code=1)
    assert "no_such_setting" in said
    assert within(10, lambda: not ours())


def test_up_with_a_url_checks_that_it_answers_and_starts_nothing():
    process, ready = start("kafka")
    said = brokerkit("up", "kafka", "--url", ready[0][1])
    assert "running: BROKERKIT_KAFKA_URL is set" in said
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    process.stdout.close()
    assert "nothing accepts connections" in brokerkit("up", "kafka", "--url", ready[0][1], code=1)
