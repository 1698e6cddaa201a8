"""Child processes of a local broker: started with a mark and a log, ended by process id."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from brokerkit.local.contract import StartFailed
from brokerkit.local.keeper import keeper

_LINES = 15
_MOST = 1 << 20
_ERROR = re.compile(
    r"\[(?:error|critical|alert|emergency)\]|\b(?:ERROR|FATAL|CRITICAL|Traceback)\b|\w*Exception\b|^Error\b",
    re.MULTILINE,
)
"""How the brokers' logs begin a line, or an account, of what went wrong."""


class Process:
    """One program that can be started, killed, paused and started again. It dies with this process."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        directory: Path,
        log: Path,
        user: int | None = None,
    ) -> None:
        """`user`: the id of the user and group it runs as, where this process may choose."""
        self.name = name
        self.log = log
        self.paused = False
        self._argv = [str(argument) for argument in argv]
        self._env = dict(env)
        self._directory = directory
        self._user = user
        self._popen: subprocess.Popen[bytes] | None = None
        self._log_began = 0

    @property
    def pid(self) -> int:
        """Process id, 0 while it is down."""
        return self._popen.pid if self._popen is not None and self._popen.poll() is None else 0

    def start(self) -> None:
        if self.pid:
            return
        watch = keeper()
        with self.log.open("ab") as log:
            self._log_began = log.tell()
            self._popen = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env | watch.mark,
                cwd=self._directory,
                start_new_session=True,
                **_as(self._user),
            )
        watch.group(self._popen.pid)
        self.paused = False

    def kill(self, timeout: float = 15.0) -> None:
        """SIGKILL; returns when the process is gone."""
        if self._popen is not None and self.pid:
            self._popen.kill()
            self._popen.wait(timeout)
        self.paused = False

    def end(self, timeout: float, by: signal.Signals = signal.SIGTERM) -> None:
        """SIGTERM or another signal, and SIGKILL if that does not end it in time."""
        if self._popen is None or not self.pid:
            return
        self.resume()
        self._popen.send_signal(by)
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def terminate(self) -> None:
        """SIGTERM; does not wait."""
        if self._popen is not None and self.pid:
            self.resume()
            self._popen.terminate()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        if self.pid:
            self._signal(signal.SIGCONT)
        self.paused = False

    def status(self) -> str:
        """How it is, or how it ended, for messages."""
        if self._popen is None:
            return "not started"
        code = self._popen.poll()
        if code is None:
            return "paused" if self.paused else "running"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def account(self) -> str:
        """What its log says since the last start: see `account`."""
        return account(self.log, self._log_began)

    def _signal(self, number: signal.Signals) -> None:
        if not self.pid:
            raise StartFailed(f"{self.name} is not running: {self.status()}")
        os.kill(self.pid, number)


def wait_until(
    condition: Callable[[], bool], timeout: float, what: str, processes: Sequence[Process], logs: Sequence[Path] = ()
) -> None:
    """Polls until the condition holds. Raises StartFailed with what the logs say when a process ends or it takes too
    long."""
    deadline = time.monotonic() + timeout
    while not condition():
        ended = [process for process in processes if not process.pid]
        if ended or time.monotonic() > deadline:
            reason = "; ".join(f"{process.name} {process.status()}" for process in ended or processes)
            since = "" if ended else f" after {timeout:g} s"
            said = [(process.log, process.account()) for process in ended or processes]
            said += [(path, account(path)) for path in logs if path.exists()]
            text = "\n".join(f"--- {path}\n{lines}" for path, lines in said)
            raise StartFailed(f"{what} not reached{since}: {reason}\n{text}")
        time.sleep(0.03)


def _as(user: int | None) -> dict[str, Any]:
    return {} if user is None else {"user": user, "group": user, "extra_groups": ()}


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    timeout: float,
    directory: Path | None = None,
    user: int | None = None,
) -> str:
    """Runs a helper program to its end and returns its output. Raises StartFailed with what it printed."""
    command = [str(argument) for argument in argv]
    try:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**env, **keeper().mark},
            cwd=directory,
            timeout=timeout,
            check=False,
            text=True,
            errors="replace",
            **_as(user),
        )
    except subprocess.TimeoutExpired:
        raise StartFailed(f"{Path(command[0]).name} took longer than {timeout:g} s") from None
    except OSError as error:
        raise StartFailed(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise StartFailed(f"{Path(command[0]).name} ended with exit code {done.returncode}:\n{said}")
    return done.stdout


def account(path: Path, since: int = 0) -> str:
    """What a log says, from a byte on: its first error with the lines after it, then its end; empty if there is none.

    The first error names the cause. The end alone may be nothing but the crash report that a program prints of
    itself, however long, and however its lines fell between those of its other threads."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(since)
            text = file.read(_MOST)
            if size > since + _MOST:
                file.seek(size - 16_384)
                text += b"\n" + file.read()
    except OSError:
        return ""
    lines = text.decode("utf-8", "replace").splitlines()
    first = next((number for number, line in enumerate(lines) if _ERROR.search(line)), len(lines))
    end = max(len(lines) - _LINES, 0)
    if first + _LINES >= end:
        return "\n".join(lines[min(first, end) :])
    between = f"[{end - first - _LINES} lines left out]"
    return "\n".join([*lines[first : first + _LINES], between, *lines[end:]])
