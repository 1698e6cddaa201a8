"""Progress of slow steps, on stderr: a spinner on a terminal, a line per step elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str], None]
"""Says what is being done now."""


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """Shows `title` and the current step while the block runs, and how long it took."""
    started = time.monotonic()
    try:
        from rich.console import Console
    except ImportError:
        console = None
    else:
        console = Console(stderr=True, highlight=False)
    if console is not None and console.is_terminal:
        with console.status(title) as status:
            yield lambda step: status.update(f"{title}: {step}")
        console.print(f"{title}: done in {time.monotonic() - started:.0f} s", style="dim")
        return

    def line(step: str) -> None:
        print(f"{title}: {step}", file=sys.stderr, flush=True)

    yield line
    line(f"done in {time.monotonic() - started:.0f} s")
