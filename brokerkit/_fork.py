"""Notices forks: client libraries' threads and sockets do not survive one, so use after it must raise by name."""

from __future__ import annotations

import os

from brokerkit.errors import Forked

generation = 0


def _forked() -> None:
    global generation
    generation += 1


os.register_at_fork(after_in_child=_forked)


def check(born: int, what: str) -> None:
    """Raises Forked when `born`, the generation an object was made in, is not this process's."""
    if born != generation:
        raise Forked(f"this {what} was made before a fork; call brokerkit.connect() again in the child process")
