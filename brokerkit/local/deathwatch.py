"""The death watch: a tiny program that outlives its owner by a moment, to end what the owner had started.

Run as a script with a bare interpreter (no site, no packages), so it starts at once and costs a few megabytes. It
reads its standard input, a pipe whose other end only the owner holds, and also looks whether its parent is still
the owner (a fork of the owner would hold the pipe open). When the owner is gone, in whatever way, it sends SIGKILL
to every process that carries the owner's mark in its environment, then removes the files and directories it was
told of.

Input, a line each: `group PID`, `remove PATH`, `keep PATH`, `segment ID UID`, `parent PID`. A group's leader is known
again by its start time where its environment cannot be read, as another user's cannot without CAP_SYS_PTRACE; the
whole group is ended where /proc is missing. With `parent`, the owner counts as gone also when that process is no longer
its parent (where /proc tells).
"""

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator

MARK = "BROKERKIT_OWNER"
"""Environment variable that marks the processes of one owner."""


def marked(variable: str, value: str, leaders: Iterable[int] = ()) -> Iterator[int]:
    """Processes that have `variable=value` in their environment, `leaders`, and those children of both whose
    environment does not tell: it may not be read, or the child has written its title over it, as PostgreSQL's do.
    None where /proc is missing."""
    wanted = f"{variable}={value}".encode()
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    found = set(leaders)
    untold = []
    for pid in (int(name) for name in names if name.isdigit() and int(name) != os.getpid()):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environment = file.read()
        except PermissionError:
            untold.append(pid)
        except OSError:
            continue  # gone meanwhile
        else:
            if wanted in environment.split(b"\0"):
                found.add(pid)
            elif environment and b"=" not in environment:
                untold.append(pid)
    yield from found
    yield from (pid for pid in untold if pid not in found and _told(pid, _PARENT) in found)


def end_marked(variable: str, value: str, leaders: Iterable[int] = (), timeout: float = 10.0) -> bool:
    """SIGKILL to all marked processes, again until none is left; whether that was reached in time."""
    deadline = time.monotonic() + timeout
    leaders = set(leaders)
    while True:
        found = list(marked(variable, value, leaders))
        leaders.clear()  # what the first pass has killed needs no other
        for pid in found:
            _kill(os.kill, pid)
        if not found or time.monotonic() > deadline:
            return not found
        time.sleep(0.05)


def remove_segment(number: int, uid: int) -> None:
    """Removes a System V shared memory segment in the name of the user whose it is; one that is gone is no error."""
    import ctypes

    mine = os.geteuid()
    if uid != mine:
        os.seteuid(uid)
    try:
        ctypes.CDLL(None).shmctl(number, 0, None)
    finally:
        if uid != mine:
            os.seteuid(mine)


class Told:
    """What the owner has said so far."""

    def __init__(self) -> None:
        self.groups: dict[int, int] = {}
        """Leader to its start time."""
        self.segments: set[tuple[int, int]] = set()
        self.paths: set[str] = set()
        self.parent = 0
        self._pending = b""

    def read(self) -> bool:
        """Takes in what is in the pipe; False at its end."""
        data = os.read(0, 65536)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            verb, _, argument = line.decode("utf-8", "surrogateescape").partition(" ")
            if verb == "group":
                self.groups[int(argument)] = _told(int(argument), _STARTED)
            elif verb == "remove":
                self.paths.add(argument)
            elif verb == "keep":
                self.paths.discard(argument)
            elif verb == "segment":
                number, _, uid = argument.partition(" ")
                self.segments.add((int(number), int(uid)))
            elif verb == "parent":
                self.parent = int(argument)
        return bool(data)

    def leaders(self) -> list[int]:
        """Those that are still the processes they were when they were told of."""
        return [pid for pid, started in self.groups.items() if started and _told(pid, _STARTED) == started]


_PARENT, _STARTED = 1, 19
"""Fields of /proc/PID/stat, counted after the name."""


def _told(pid: int, field: int) -> int:
    """What /proc/PID/stat says, which anybody may read; 0 where it says nothing."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[field])
    except OSError:
        return 0


def orphaned(pid: int, parent: int) -> bool:
    """Whether the process has lost the parent it had; False where that is not known."""
    return bool(parent) and _told(pid, _PARENT) not in (0, parent)


def watch(owner: int, token: str) -> None:
    """Waits until the owner is gone, then ends its processes and removes its files."""
    told = Told()
    # What the owner wrote before it went must be read, also if it went before this program was up.
    while (os.getppid() == owner and not orphaned(owner, told.parent)) or select.select([0], [], [], 0)[0]:
        if select.select([0], [], [], 0.5)[0] and not told.read():
            break
    if not os.path.isdir("/proc/self"):
        for group in told.groups:
            _kill(os.killpg, group)
    end_marked(MARK, token, told.leaders())
    time.sleep(0.3)  # a child that the owner had forked and that was not yet its program
    end_marked(MARK, token)
    for number, uid in told.segments:
        remove_segment(number, uid)
    # A process that is still dying may write once more.
    deadline = time.monotonic() + 10.0
    paths = list(told.paths)
    while (paths := [path for path in paths if not _removed(path)]) and time.monotonic() < deadline:
        time.sleep(0.1)


def _kill(kill: Callable[[int, int], None], pid: int) -> None:
    try:
        kill(pid, signal.SIGKILL)
    except OSError:
        pass  # gone meanwhile


def _removed(path: str) -> bool:
    """Removes the directory or file; whether nothing is there now."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        try:
            os.unlink(path)
        except OSError:
            pass  # gone already
    return not os.path.lexists(path)


if __name__ == "__main__":
    # Ctrl-C and a hang-up are for the owner to answer; this one goes when the owner has gone.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watch(int(sys.argv[1]), sys.argv[2])
