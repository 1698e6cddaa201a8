"""Where our own actors are forked from: one process that has imported everything, and done nothing.

An interpreter and its imports cost a core half a second to a whole one, for each of the hundreds of actors of a run;
a fork costs some ten milliseconds. What is forked is a process like any other: of its own id, session and journal. The
nursery has no threads and no connections, so that nothing in a child is half of something. It ends with the
supervisor's end of its socket, and ends its children then, also those that are stopped.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_REQUEST = 1 << 17
_PATIENCE = 60.0


class Child:
    """A forked actor, as subprocess.Popen shows a process."""

    def __init__(self, stdin: int, stdout: int) -> None:
        self.stdin = os.fdopen(stdin, "wb")
        self.stdout = os.fdopen(stdout, "rb")
        self.pid = 0
        self.returncode: int | None = None
        self.born = threading.Event()
        self.ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"actor {self.pid}", timeout)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # ended, and not told yet
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The supervisor's side. Safe from several threads."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._lock = threading.Lock()
        self._unborn: deque[Child] = deque()
        self._children: dict[int, Child] = {}
        threading.Thread(target=self._hear, name="nursery", daemon=True).start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def fork(self, role: str, errors: Path) -> Child:
        """An actor of this role, in this process's environment and folder; what it says to stderr is added to
        `errors`. Raises ConnectionError when the nursery is gone."""
        request = {"role": role, "errors": str(errors), "environment": dict(os.environ), "folder": os.getcwd()}
        read_in, write_in = os.pipe()
        read_out, write_out = os.pipe()
        child = Child(write_in, read_out)
        try:
            with self._lock:
                self._unborn.append(child)
                socket.send_fds(self._control, [json.dumps(request).encode()], [read_in, write_out])
        finally:
            os.close(read_in)
            os.close(write_out)
        if not child.born.wait(_PATIENCE) or not child.pid:
            raise ConnectionError("the nursery of the suite's actors does not answer, or has ended")
        return child

    def _hear(self) -> None:
        while said := self._said():
            pid, status = json.loads(said)
            if status is None:
                child = self._children[pid] = self._unborn.popleft()
                child.pid = pid
                child.born.set()
            else:
                child = self._children.pop(pid)
                child.returncode = status
                child.ended.set()
        for child in [*self._unborn, *self._children.values()]:  # it died, and they with it
            child.returncode = -signal.SIGKILL
            child.ended.set()
            child.born.set()
        self._process.wait()

    def _said(self) -> bytes:
        """The next that the nursery tells; nothing once it is gone."""
        try:
            return self._control.recv(4096)
        except ConnectionError:
            return b""


def _preload() -> None:
    """All that actors import before they connect."""
    package = importlib.import_module("brokerkit_conformance.actors")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if module.name != __name__:
            importlib.import_module(module.name)
    plugins = importlib.import_module("brokerkit.plugins")
    for plugin in plugins.plugins().values():
        with suppress(ImportError):  # a plugin need not be laid out as ours are, nor its client be installed
            importlib.import_module(f"{plugin.open.__module__}.driver")


class _Control:
    """The nursery's side: forks what it is asked for, and tells of every end."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._wake, self._woken = os.pipe()
        os.set_blocking(self._woken, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._woken)
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._children: set[int] = set()

    def serve(self) -> Callable[[], Any] | None:
        """In the nursery: until the supervisor is gone. In each child: its actor, to be run by the caller."""
        while True:
            ready = [key.fd for key, _ in self._selector.select()]
            if self._wake in ready:
                self._reap()
            if self._control.fileno() in ready:
                said, files, _, _ = socket.recv_fds(self._control, _REQUEST, 2)
                if not said:
                    for pid in self._children:
                        os.kill(pid, signal.SIGKILL)
                    return None
                actor = self._fork(json.loads(said), files)
                if actor is not None:
                    return actor

    def _fork(self, request: dict[str, Any], files: list[int]) -> Callable[[], Any] | None:
        pid = os.fork()
        if not pid:
            return self._born(request, files)
        for file in files:
            os.close(file)
        self._children.add(pid)
        self._tell(pid, None)
        return None

    def _born(self, request: dict[str, Any], files: list[int]) -> Callable[[], Any]:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        self._selector.close()
        self._control.close()
        errors = os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for number, file in enumerate((*files, errors)):
            os.dup2(file, number)
        for file in (*files, errors, self._wake, self._woken):
            os.close(file)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        actor: Callable[[], Any] = importlib.import_module(f"brokerkit_conformance.actors.{request['role']}").main
        return actor

    def _reap(self) -> None:
        os.read(self._wake, 4096)
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                self._children.discard(found[0])
                self._tell(found[0], os.waitstatus_to_exitcode(found[1]))

    def _tell(self, pid: int, status: int | None) -> None:
        with suppress(BrokenPipeError):  # the supervisor is gone: seen by the next look at the socket
            self._control.send(json.dumps([pid, status]).encode())


def main() -> None:
    _preload()
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page of what it was born with
    actor = _Control(socket.socket(fileno=int(sys.argv[1]))).serve()
    if actor is not None:
        actor()


if __name__ == "__main__":
    main()
