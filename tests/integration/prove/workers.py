"""Processes that work while the soaks kill them, and how long their ends are waited for."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable


class Workers:
    """Processes by slot; each is ended by its own id."""

    def __init__(self, start: Callable[[str], subprocess.Popen[bytes]]) -> None:
        self._start = start
        self.by_slot: dict[str, subprocess.Popen[bytes]] = {}
        self.faults: list[str] = []

    def begin(self, slot: str) -> None:
        self.by_slot[slot] = self._start(slot)

    def kill(self, slot: str) -> None:
        process = self.by_slot[slot]
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        self.faults.append(f"killed {slot}")
        self.begin(slot)

    def freeze(self, slot: str, seconds: float) -> None:
        process = self.by_slot[slot]
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)  # the fault itself
        process.send_signal(signal.SIGCONT)
        self.faults.append(f"froze {slot} for {seconds:.0f} s")

    def add(self, slot: str, seconds: float) -> None:
        self.begin(slot)
        time.sleep(seconds)
        self.leave(slot)
        self.faults.append(f"added {slot} for {seconds:.0f} s")

    def leave(self, slot: str) -> None:
        process = self.by_slot.pop(slot)
        process.terminate()
        assert process.wait(60) == 0, f"{slot} had ended by itself, or not in order"

    def end(self) -> None:
        for process in self.by_slot.values():
            process.kill()
            process.wait(10)


def told(faults: list[str], seconds: float) -> None:
    kinds = Counter(" ".join(fault.split()[:2]).partition("-")[0] for fault in faults)
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    print(f"{seconds:.0f} s, {len(faults)} faults ({counted}): {', '.join(faults)}", flush=True)


def until(done: Callable[[], bool], timeout: float, said: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, said()
        time.sleep(0.5)
