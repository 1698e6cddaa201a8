"""Processes of a demo that are there to be killed. Each is started, and ended, by its id."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from typing import IO

from brokerkit.local.keeper import keeper

_PATIENCE = 10.0


def start(
    module: str,
    *arguments: str,
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
    stderr: IO[str] | None = None,
) -> subprocess.Popen[str]:
    # The mark: one whose parent is killed before it is up does not know whose child it was.
    environment = {**os.environ, **keeper().mark}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, text=True)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, which also ends one that is stopped."""
    process.kill()
    process.wait(_PATIENCE)


def end(processes: Iterable[subprocess.Popen[str]]) -> None:
    """SIGTERM to all of them, and SIGKILL to those that take too long."""
    left = [process for process in processes if process.poll() is None]
    for process in left:
        process.terminate()
    for process in left:
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            kill(process)
