"""Whose connection it is: the process at the other end of a loopback socket."""

from __future__ import annotations

import os
from collections.abc import Iterable

import psutil

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


def owner_of(port: int, listening: int, among: Iterable[int]) -> int | None:
    """The process of `among` that holds the socket from `port` to our `listening` port. One of them may have ended long
    ago and a thread have its number now: such a thread shows its process's sockets as its own, and is none."""
    inode = _inode(port, listening)
    if inode is None:
        return None
    wanted = f"socket:[{inode}]"
    return next((pid for pid in among if _holds(pid, wanted) and psutil.pid_exists(pid)), None)


def _inode(port: int, listening: int) -> str | None:
    for table in _TABLES:
        try:
            with open(table) as lines:
                next(lines)
                for line in lines:
                    fields = line.split()
                    if _port(fields[1]) == port and _port(fields[2]) == listening:
                        return fields[9]
        except FileNotFoundError:
            continue
    return None


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def _holds(pid: int, wanted: str) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        handles = os.listdir(folder)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    for handle in handles:
        try:
            if os.readlink(f"{folder}/{handle}") == wanted:
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
    return False
