"""Whatever way an owner ends, its processes and temporary directories go with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

OWNER = """
import os, subprocess, sys, time
from pathlib import Path
from brokerkit.local.keeper import keeper, temporary_directory
from brokerkit.local.processes import Process

with temporary_directory() as directory:
    (directory / "data").write_text("x")
    child = Process("child", [sys.executable, "-c", {child!r}], env=dict(os.environ), directory=directory,
                    log=directory / "log")
    child.start()
    {extra}
    print(directory, child.pid, keeper().pid, flush=True)
    {ending}
"""
SLEEPS = "import time; time.sleep(600)"
# A child that leaves its process group and session, and whose own child has lost its parent, as daemons do.
HIDES = "import os, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); time.sleep(600)"
WAITS = "time.sleep(600)"


@pytest.fixture
def owned() -> Iterator[list[int]]:
    """Process ids to end when the test has failed to."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


def start(
    owned: list[int], *, child: str = SLEEPS, extra: str = "", ending: str = WAITS
) -> tuple[subprocess.Popen[str], Path, int]:
    """Runs an owner; returns it, its directory and its child's pid.

    The Popen itself, not its pid: one that is forgotten is reaped by the next Popen, before anybody can wait for it.
    """
    code = textwrap.dedent(OWNER).format(child=child, extra=extra, ending=ending)
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    owned.append(owner.pid)
    assert owner.stdout is not None
    directory, pid, watch = owner.stdout.readline().split()
    owner.stdout.close()
    owned += [int(pid), int(watch)]
    return owner, Path(directory), int(pid)


def gone_within(seconds: float, pid: int, directory: Path) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not directory.exists() and (not psutil.pid_exists(pid) or _zombie(pid)):
            return True
        time.sleep(0.05)
    return False


def _zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.wait(10)


def test_children_and_directories_go_when_the_owner_is_killed(owned):
    owner, directory, child = start(owned)
    kill(owner)
    assert gone_within(10, child, directory)


def test_they_go_when_the_owner_ends_without_a_word(owned):
    owner, directory, child = start(owned, ending="os._exit(0)")
    owner.wait(10)
    assert gone_within(10, child, directory)


def test_a_paused_child_goes_too(owned):
    owner, directory, child = start(owned, extra="child.pause()")
    kill(owner)
    assert gone_within(10, child, directory)


def test_a_fork_of_the_owner_that_holds_its_descriptors_does_not_keep_the_children(owned):
    owner, directory, child = start(
        owned,
        extra="fork = subprocess.Popen(['sleep', '20'], close_fds=False) and os.fork()\n"
        "    fork or (time.sleep(20), os._exit(0))",
    )
    kill(owner)
    assert gone_within(10, child, directory)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc, which shows a process's environment")
def test_a_child_that_has_left_its_group_and_parent_is_found_by_its_mark(owned):
    owner, directory, _ = start(owned, child=HIDES)
    hidden = _wait_for_daemon(directory)
    owned.append(hidden)
    kill(owner)
    assert gone_within(10, hidden, directory)


def _wait_for_daemon(directory: Path) -> int:
    """The orphan whose working directory is the owner's."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for process in psutil.process_iter():
            try:
                if process.cwd() == str(directory) and process.ppid() == 1:
                    return process.pid
            except psutil.Error:
                continue
        time.sleep(0.05)
    raise AssertionError("the daemon did not come up")


def test_a_directory_that_somebody_still_writes_in_when_it_is_left_goes_with_the_owner(tmp_path):
    code = """
from brokerkit.local import keeper
keeper.shutil.rmtree = lambda path, **_: None  # as if a file had come meanwhile
with keeper.temporary_directory() as directory: pass
print(directory, directory.exists())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    directory, still = done.stdout.split()
    assert still == "True"
    deadline = time.monotonic() + 10
    while Path(directory).exists():
        assert time.monotonic() < deadline, "it was left behind"
        time.sleep(0.05)


def test_a_directory_is_the_owners_alone():
    from brokerkit.local.keeper import temporary_directory

    with temporary_directory() as directory:
        assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc, which shows a process's parent")
def test_a_worker_whose_parent_is_killed_loses_its_children_and_directories_though_it_lives_on(owned):
    code = textwrap.dedent(OWNER).format(child=SLEEPS, extra="keeper().with_parent()", ending=WAITS)
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"],
        stdout=subprocess.PIPE,
        text=True,
    )
    owned.append(parent.pid)
    assert parent.stdout is not None
    directory, child, watch = parent.stdout.readline().split()
    parent.stdout.close()
    worker = psutil.Process(int(watch)).ppid()
    owned += [int(child), int(watch), worker]
    kill(parent)
    assert gone_within(10, int(child), Path(directory))
    assert psutil.pid_exists(worker)


def test_what_ends_in_order_is_left_to_its_owner(tmp_path):
    code = "from brokerkit.local.keeper import *\nwith temporary_directory() as d: print(d)\nprint(keeper().alive())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    directory, alive = done.stdout.split()
    assert not Path(directory).exists()
    assert alive == "True"
