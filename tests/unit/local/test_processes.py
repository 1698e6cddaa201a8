"""A child process's life as the broker's owner sees it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from brokerkit.local.contract import StartFailed
from brokerkit.local.processes import Process, account, run, wait_until


def process(folder: Path, code: str) -> Process:
    return Process("node 1", [sys.executable, "-c", code], env=dict(os.environ), directory=folder, log=folder / "log")


@pytest.fixture
def sleeper(tmp_path):
    child = process(tmp_path, "import time; print('up', flush=True); time.sleep(600)")
    child.start()
    yield child
    child.kill()


def test_its_pid_is_zero_while_it_is_down(sleeper):
    assert psutil.pid_exists(sleeper.pid)
    sleeper.kill()
    assert sleeper.pid == 0
    assert sleeper.status() == "ended by SIGKILL"
    sleeper.start()
    assert sleeper.pid


def test_kill_returns_when_the_process_is_gone_also_when_it_was_paused(sleeper):
    pid = sleeper.pid
    sleeper.pause()
    sleeper.kill()
    assert not psutil.pid_exists(pid)


def test_pause_stops_it_and_resume_lets_it_go_on(sleeper):
    sleeper.pause()
    assert _within(5, lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_STOPPED)
    sleeper.resume()
    assert _within(5, lambda: psutil.Process(sleeper.pid).status() != psutil.STATUS_STOPPED)


def test_pausing_what_does_not_run_says_how_it_ended(sleeper):
    sleeper.kill()
    with pytest.raises(StartFailed, match="node 1 is not running: ended by SIGKILL"):
        sleeper.pause()


def test_an_error_shows_the_end_of_the_log_of_the_process_that_died(tmp_path):
    child = process(tmp_path, "print('port 7 is taken'); raise SystemExit(3)")
    child.start()
    with pytest.raises(
        StartFailed, match=r"(?s)kafka: ready not reached: node 1 ended with exit code 3.*port 7 is taken"
    ):
        wait_until(lambda: False, 10, "kafka: ready", [child])


def test_an_error_shows_the_cause_however_long_the_crash_report_after_it(tmp_path):
    code = (
        "print('\\n'.join(f'[info] boot step {n}' for n in range(200)));"
        "print('[error] there is no setting x');"
        "print('\\n'.join(f'[error]   frame {n}' for n in range(500)));"
        "raise SystemExit(1)"
    )
    child = process(tmp_path, code)
    child.start()
    with pytest.raises(StartFailed) as failed:
        wait_until(lambda: False, 10, "ready", [child])
    said = str(failed.value).splitlines()
    assert "[error] there is no setting x" in said
    assert "[471 lines left out]" in said
    assert said[-1] == "[error]   frame 499"
    assert not any("boot step" in line for line in said)


def test_an_error_shows_nothing_of_an_earlier_start(tmp_path):
    child = process(tmp_path, "import os; print('[error] of', os.getpid(), flush=True); raise SystemExit(1)")
    for _ in range(2):
        child.start()
        with pytest.raises(StartFailed) as failed:
            wait_until(lambda: False, 10, "ready", [child])
    assert str(failed.value).count("[error] of") == 1
    assert child.log.read_text().count("[error] of") == 2


@pytest.mark.parametrize("lines", [0, 1, 15, 40])
def test_a_log_without_an_error_shows_its_end(tmp_path, lines):
    (tmp_path / "log").write_text("".join(f"line {n}\n" for n in range(lines)))
    assert account(tmp_path / "log").splitlines() == [f"line {n}" for n in range(max(0, lines - 15), lines)]


def test_a_log_that_is_not_there_says_nothing(tmp_path):
    assert account(tmp_path / "log") == ""


def test_a_huge_log_shows_its_first_error_and_its_end(tmp_path):
    with (tmp_path / "log").open("w") as log:
        log.write("java.lang.IllegalStateException: the cause\n")
        log.writelines(f"at frame {n}\n" for n in range(200_000))
    said = account(tmp_path / "log").splitlines()
    assert said[0] == "java.lang.IllegalStateException: the cause"
    assert said[-1] == "at frame 199999"


def test_waiting_ends_when_the_time_is_up(sleeper):
    started = time.monotonic()
    with pytest.raises(StartFailed, match=r"ready not reached after 0.2 s: node 1 running"):
        wait_until(lambda: False, 0.2, "ready", [sleeper])
    assert time.monotonic() - started < 3


def test_a_helper_program_that_fails_or_hangs_or_is_missing_says_what_it_said():
    with pytest.raises(StartFailed, match=r"(?s)exit code 2:.*no such suite"):
        run([sys.executable, "-c", "print('no such suite'); raise SystemExit(2)"], env=os.environ, timeout=20)
    with pytest.raises(StartFailed, match=r"took longer than 0.3 s"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], env=os.environ, timeout=0.3)
    with pytest.raises(StartFailed, match="nowhere cannot be run"):
        run(["/nowhere"], env=os.environ, timeout=1)


def _within(seconds: float, condition) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
