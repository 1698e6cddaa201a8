"""The owner's side of the death watch: marks for child processes, and directories that do not outlive their owner."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brokerkit.local import deathwatch


class Keeper:
    """One death watch for one owning process. Everything it is told about goes when the owner goes."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.token = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", deathwatch.__file__, str(self.owner), self.token],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )

    @property
    def mark(self) -> dict[str, str]:
        """What a child's environment must hold so that the child, and its children, end with the owner."""
        return {deathwatch.MARK: self.token}

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def group(self, pid: int) -> None:
        """Names a process group of the owner's, for processes that do not show their environment."""
        self._tell(f"group {pid}")

    def remove(self, path: Path) -> None:
        """Has the directory or file removed when the owner is gone."""
        self._tell(f"remove {path}")

    def keep(self, path: Path) -> None:
        """Takes `remove` back."""
        self._tell(f"keep {path}")

    def segment(self, number: int, uid: int) -> None:
        """Has a System V shared memory segment of that user removed when the owner is gone."""
        self._tell(f"segment {number} {uid}")

    def with_parent(self) -> None:
        """Takes the owner for gone also when its parent is: for a worker whose end is up to somebody else."""
        self._tell(f"parent {os.getppid()}")

    def _tell(self, line: str) -> None:
        if "\n" in line:
            raise ValueError("a path with a line break cannot be watched")
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(os.fsencode(line) + b"\n")
            self._process.stdin.flush()


_keeper: Keeper | None = None
_making = threading.Lock()


def keeper() -> Keeper:
    """This process's keeper, started at first use; a forked child gets its own."""
    global _keeper
    with _making:
        if _keeper is None or _keeper.owner != os.getpid() or not _keeper.alive():
            _keeper = Keeper()
        return _keeper


@contextmanager
def temporary_directory(prefix: str = "brokerkit-") -> Iterator[Path]:
    """A directory that is removed on leaving, and also when the owner is killed."""
    watch = keeper()
    path = Path(tempfile.gettempdir(), prefix + uuid.uuid4().hex[:12])
    watch.remove(path)  # before it is there: an owner that is killed in between leaves nothing
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():  # else somebody still writes there, and it goes when the owner goes
            watch.keep(path)
