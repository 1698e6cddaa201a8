"""Which `brokerkit up` runs, as one small file per process in the user's state folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import platformdirs
import psutil

from brokerkit.local.keeper import keeper


@dataclass(frozen=True)
class Running:
    """One broker of a session."""

    target: str
    url: str
    product: str
    version: str
    provider: str
    pids: list[int]
    options: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    """What its own clients and tools read to find it."""


@dataclass(frozen=True)
class Session:
    """One process that keeps brokers up."""

    pid: int
    started: float
    """Creation time of the process, which tells it from a later one with the same id."""
    detached: bool
    brokers: list[Running] = field(default_factory=list)
    failure: str = ""
    """Why it gave up, for whoever waits for it."""

    @property
    def alive(self) -> bool:
        return process_of(self) is not None


def state_folder() -> Path:
    """`$BROKERKIT_STATE`, or `brokerkit` in the user's state folder."""
    chosen = os.environ.get("BROKERKIT_STATE")
    return Path(chosen).absolute() if chosen else Path(platformdirs.user_state_dir("brokerkit", appauthor=False))


def file_of(pid: int) -> Path:
    return state_folder() / f"{pid}.json"


def own(*, detached: bool) -> Session:
    """The session of this process."""
    return Session(os.getpid(), psutil.Process().create_time(), detached)


def save(session: Session) -> None:
    """Writes the session's file, which goes with its process. It holds URLs, so only the user may read it."""
    path = file_of(session.pid)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(asdict(session)))
    temporary.replace(path)
    keeper().remove(path)


def forget(pid: int) -> None:
    file_of(pid).unlink(missing_ok=True)


def load(pid: int) -> Session | None:
    """The session of a process, None if there is none (any more)."""
    try:
        data = json.loads(file_of(pid).read_text())
        return Session(**{**data, "brokers": [Running(**broker) for broker in data["brokers"]]})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def sessions() -> tuple[list[Session], list[Session]]:
    """Sessions that run, and stale ones whose process is gone without a trace; the files of those are removed."""
    running, stale = [], []
    for path in sorted(state_folder().glob("*.json")):
        session = load(int(path.stem)) if path.stem.isdigit() else None
        if session is None:
            continue
        if session.alive:
            running.append(session)
        else:
            stale.append(session)
            path.unlink(missing_ok=True)
    return running, stale


def process_of(session: Session) -> psutil.Process | None:
    """The session's process, None if it is gone."""
    try:
        process = psutil.Process(session.pid)
        same = abs(process.create_time() - session.started) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None
