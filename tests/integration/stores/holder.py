"""Holds a key in a process of its own: STORE KEY LEASE LOG WHAT [CLOCK].

Writes the key to the file LOG as its effect, says where it is on standard output, and waits for a line before it goes
on. WHAT is `before` (holds, waits, effect, finishes) or `after` (holds, effect, waits, finishes). CLOCK is added to the
seconds of this process's wall clock.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from brokerkit.errors import KeyInUse, KeyLost
from brokerkit.once import Keys


def main() -> None:
    store, key, lease, log, what, *clock = sys.argv[1:]
    if clock:
        true_time, jump = time.time, float(clock[0])
        time.time = lambda: true_time() + jump
    with Keys(store, "holders", lease=float(lease)) as keys:
        try:
            held = keys.hold(key, b"request")
        except KeyInUse as error:
            print(f"in use {error.seconds:.3f}", flush=True)
            return
        if what == "before":
            print(f"held {held.attempts}", flush=True)
            sys.stdin.readline()
        with Path(log).open("a") as effects:
            effects.write(f"{key}\n")
        if what == "after":
            print(f"held {held.attempts}", flush=True)
            sys.stdin.readline()
        try:
            held.finish(b"first")
            print("finished", flush=True)
        except KeyLost as error:
            print(f"lost: {error}", flush=True)


main()
