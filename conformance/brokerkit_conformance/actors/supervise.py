"""The supervisor's side of an actor: start it, talk to it, kill it, and know how it ended.

Every process started here is ended by its own id, whatever happens to the check.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brokerkit_conformance.actors.nursery import Nursery
from brokerkit_conformance.history import Journal

_GRACE = 40.0
_alive: set[Actor] = set()
_nursery: Nursery | None = None
_nursery_lock = threading.Lock()
_ending = threading.Event()


@contextmanager
def ending_all() -> Iterator[None]:
    """Ends every actor that still lives, for an interrupted run; while it lasts none can be started or waited for,
    so that each cell comes to its end."""
    _ending.set()
    try:
        for actor in list(_alive):
            actor.interrupt()
        yield
    finally:
        _ending.clear()


def going_on() -> None:
    """Raises Interrupted while everything is being ended."""
    if _ending.is_set():
        raise Interrupted("the run was interrupted")


def locks_a_file(pid: int) -> bool:
    """Whether the process holds a lock on a file, or a part of one, that keeps everybody else out."""
    locks = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return any(lock[3:5] == ["WRITE", str(pid)] for lock in locks)


def _nursery_now() -> Nursery:
    global _nursery
    with _nursery_lock:
        if _nursery is None or not _nursery.alive:
            _nursery = Nursery()
        return _nursery


def _started(command: Sequence[str], errors: Path) -> subprocess.Popen[bytes]:
    with errors.open("ab") as said:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, start_new_session=True
        )


class ActorFailed(Exception):
    """An actor ended, or went silent, where the check needed it. The text ends with what it last said."""


class Interrupted(ActorFailed):
    """Everything is being ended."""


class Actor:
    """One incarnation of a producer or consumer. Used from the thread that made it, which must outlive it.

    `plays` is what runs: the role of one of this package's actors, or the command of another program that speaks as
    they do."""

    def __init__(self, plays: str | Sequence[str], spec: dict[str, Any], journal: Journal, directory: Path) -> None:
        going_on()
        self.name: str = spec["actor"]
        self.ended = False
        self.frozen = False
        self.status: int | None = None
        self._journal = journal
        self._own_journal = Path(spec["journal"])
        self._errors = directory / f"{self.name.replace('#', '.')}.stderr"
        self._words: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()
        self._process = (
            _nursery_now().fork(plays, self._errors) if isinstance(plays, str) else _started(plays, self._errors)
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name=f"hears {self.name}", daemon=True)
        self._reader.start()
        _alive.add(self)
        try:
            going_on()
            self._write(spec)
        except ActorFailed:
            self.end()
            raise

    # ------------------------------------------------------------ talking

    def wait_for(self, word: str, timeout: float = 30.0) -> list[str]:
        """What followed `word` in the next line that begins with it; lines before are skipped.

        Raises ActorFailed when the actor ends first, or says nothing such in time.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                words = self._words.get(timeout=left)
            except queue.Empty:
                break
            if words is None:
                self._words.put(None)
                raise ActorFailed(f"{self.name} ended before it said {word}: {self.last_words()}")
            if words[0] == word:
                return words[1:]
        raise ActorFailed(f"{self.name} did not say {word} within {timeout:.0f} s: {self.last_words()}")

    def wait_ready(self, timeout: float = 40.0) -> None:
        self.wait_for("READY", timeout)

    def wait_at(self, point: str, timeout: float = 30.0) -> str:
        """The id of the message at whose `point` the actor now stands still."""
        at, id = self.wait_for("AT", timeout)
        if at != point:
            raise ActorFailed(f"{self.name} stands at {at} instead of {point}")
        return str(json.loads(id))

    def command(self, do: str, **options: Any) -> None:
        self._write({"do": do, **options})

    def release(self) -> None:
        """Lets an actor that stands at a barrier go on."""
        self.command("release")

    # ------------------------------------------------------------ ending and freezing

    def kill(self) -> int:
        """SIGKILL; returns the status as waitpid tells it, -9."""
        self._signal(signal.SIGKILL)
        return self._reap(10.0)

    def terminate(self, timeout: float = _GRACE) -> int:
        """SIGTERM, and the status; SIGKILL follows when it does not end in time."""
        self._signal(signal.SIGTERM)
        return self._reap(timeout)

    def close(self, timeout: float = _GRACE) -> int:
        """Asks it to close and end; returns its status. Raises ActorFailed when it ended in any way but 0."""
        self.command("close")
        status = self._reap(timeout)
        if status != 0:
            raise ActorFailed(f"{self.name} ended with {status} instead of closing: {self.last_words()}")
        return status

    def wait_end(self, timeout: float = _GRACE) -> int:
        """Its status, once it ended by itself; SIGKILL follows when it does not in time."""
        return self._reap(timeout)

    def freeze(self) -> None:
        """SIGSTOP; returns when the kernel has stopped every thread.

        Never in the middle of a write to a file that others share: with its lock it would stop them all, which is
        another failure than a consumer that stands still.
        """
        self.frozen = True
        until = time.monotonic() + 5.0
        while True:
            self._signal(signal.SIGSTOP)
            while self.state() != "T":
                if time.monotonic() > until:
                    raise ActorFailed(f"{self.name} does not stop")
                time.sleep(0.005)
            if not locks_a_file(self.pid):
                return
            if time.monotonic() > until:
                raise ActorFailed(f"{self.name} never stands still without a lock on a file")
            self._signal(signal.SIGCONT)
            time.sleep(0.002)

    def thaw(self) -> None:
        """SIGCONT."""
        self.frozen = False
        self._signal(signal.SIGCONT)

    def state(self) -> str:
        """The kernel's letter for it: R, S, D, T (stopped), Z."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return "X"
        return stat.rpartition(")")[2].split()[0]

    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """Ends it if it still lives. Never raises for one that is gone."""
        if not self.ended:
            self._process.kill()
            self._reap(10.0)

    def interrupt(self) -> None:
        """SIGKILL from another thread; the one that owns it finds it ended."""
        self._process.kill()

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        text = self._errors.read_text(errors="replace").strip()
        return text.splitlines()[-1][:300] if text else "nothing on stderr"

    # ------------------------------------------------------------ inside

    def _signal(self, number: int) -> None:
        if self._process.poll() is not None:
            raise ActorFailed(f"{self.name} had already ended with {self._process.returncode}: {self.last_words()}")
        self._process.send_signal(number)

    def _reap(self, timeout: float) -> int:
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait(10.0)
        if not self.ended:
            self.ended = True
            self.status = status
            _alive.discard(self)
            self._reader.join(5.0)
            self._close_pipes()
            lines = Journal.written(self._own_journal)
            self._journal.write("process_end", status=status, target=self.name, lines=lines)
        return status

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    # What was still buffered for it has nobody left to read it.
                    continue

    def _write(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise ActorFailed(f"{self.name} has ended: {self.last_words()}") from None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if words := line.decode(errors="replace").strip().split(None, 2):
                self._words.put(words)
        self._words.put(None)
