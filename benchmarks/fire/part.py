"""What a peer's process needs to play the suite's copier; nothing beyond the standard library, for a peer lives in a
virtual environment of its own, without brokerkit.

It speaks as the suite's own actors do: one line of JSON in, then commands, one line each; `READY` out; and a journal.
Only when transactions begin and are committed is written there. What was lost or doubled, the suite's readers tell.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_PR_SET_PDEATHSIG = 1
_HISTORY = Path(__file__).parents[2] / "conformance" / "brokerkit_conformance" / "history.py"


class Part:
    """Made once, by the main thread. `on_stop` is called, from any thread, when the copier is to end in order."""

    def __init__(self) -> None:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        self._lines = _lines()
        self.spec: dict[str, Any] = json.loads(next(self._lines))
        self.journal = _history().Journal(Path(self.spec["journal"]), self.spec["actor"])
        self.journal.write("process_start")
        self.stopping = threading.Event()
        self.on_stop: Callable[[], None] = lambda: None
        self.transactions = 0
        self.open = ""
        url = urlsplit(self.spec["url"])
        settings = dict(parse_qsl(url.query))
        self.servers = url.netloc
        self.session_ms = int(1000 * float(settings["session_timeout"]))
        [self.topic] = self.spec["topics"]
        self.outs: list[str] = self.spec["outs"]
        self.group = f"{self.topic}--{self.spec['subscription']}"
        self.instance: str = self.spec["instance"]
        self.most = int(self.spec["options"].get("max_messages", 500))
        self.seconds = float(self.spec["options"].get("max_seconds", 1.0))
        self.work = float(self.spec["handler"].get("work", 0.0))

    def play(self, session: Callable[[Part], None]) -> None:
        """One session after another until told to stop: one that fails is begun anew, as a process manager does."""
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()
        os.write(1, b"READY\n")
        while not self.stopping.is_set():
            try:
                self.open = ""
                session(self)
            except Exception as error:
                self.journal.write("note", text=f"begun anew after {type(error).__name__}: {error}")
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                self.stopping.wait(0.5)
        os.write(1, b"DONE close 0\n")

    def handle(self) -> None:
        """What the check wants done with a message."""
        if not self.open:
            self.open = f"{self.spec['actor']}:{self.transactions}"
            self.transactions += 1
            self.journal.write("txn", "invoke", txn=self.open)
        time.sleep(self.work)

    def committed(self) -> None:
        self.journal.write("txn", "ok", txn=self.open)
        self.open = ""

    def _stop(self) -> None:
        self.stopping.set()
        self.on_stop()

    def _listen(self) -> None:
        for line in self._lines:
            if json.loads(line)["do"] in ("close", "stop"):
                self._stop()


def _lines() -> Iterator[bytes]:
    """Lines of the input; its end ends the process."""
    rest = b""
    while data := os.read(0, 65536):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    os._exit(70)


def _history() -> Any:
    """The suite's journal, without the suite."""
    found = importlib.util.spec_from_file_location("history", _HISTORY)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["history"] = module
    found.loader.exec_module(module)
    return module
