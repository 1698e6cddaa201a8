"""What every actor's process begins with: its specification, its journal, its barriers, its lifeline.

The supervisor writes one line of JSON, the specification, and then commands; the actor answers with words, one
line each: `READY`, `AT <point> <id>`, `DONE <command> <number>`. The actor dies with its supervisor: the kernel
kills it when the parent dies (also while it is stopped), and it ends by itself when its input closes.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import queue
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import brokerkit
from brokerkit_conformance.history import Journal
from brokerkit_conformance.messages import DIGEST, digest

_PR_SET_PDEATHSIG = 1


class Stage:
    """The actor's side of the pipe. Made once, by the main thread."""

    def __init__(self) -> None:
        _die_with_parent()
        self._lines = _lines()
        self.spec: dict[str, Any] = json.loads(next(self._lines))
        self.actor: str = self.spec["actor"]
        self.journal = Journal(Path(self.spec["journal"]), self.actor)
        self.stopping = threading.Event()
        self.commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._released = threading.Semaphore(0)
        signal.signal(signal.SIGTERM, lambda *_: self.stopping.set())
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()
        self.journal.write("process_start")

    def connect(self) -> Any:
        """The broker of the specification, inside the adapter that it names, if any."""
        broker = brokerkit.connect(self.spec["url"], on_event=self.event, **self.spec.get("settings", {}))
        return adapted(broker, self.spec.get("adapter"))

    def say(self, *words: object) -> None:
        os.write(1, (" ".join(str(word) for word in words) + "\n").encode())

    def barrier(self, point: str, id: str) -> None:
        """Stands still until the supervisor lets it go on, or ends it."""
        self.journal.write("at", id=id, point=point)
        self.say("AT", point, json.dumps(id))
        self._released.acquire()

    def received(self, delivery: Any, subscription: str, **more: Any) -> None:
        """Writes down that a message was handed out, and whether it is whole."""
        headers = delivery.headers
        found = digest(delivery.body, delivery.key, headers, delivery.content_type)
        self.journal.write(
            "receive",
            "ok",
            delivery.id,
            attempt=delivery.attempt,
            position=None if delivery.position is None else str(delivery.position),
            key=delivery.key,
            sha=found,
            topic=delivery.topic,
            subscription=subscription,
            headers_ok=headers.get(DIGEST) == found,
            published_at=delivery.published_at,
            **more,
        )

    def event(self, event: Any) -> None:
        self.journal.write("event", kind=str(event.kind), detail=str(event.detail))

    def _listen(self) -> None:
        for line in self._lines:
            command = json.loads(line)
            if command["do"] == "release":
                self._released.release()
            elif command["do"] == "stop":
                self.stopping.set()
            else:
                self.commands.put(command)


def _lines() -> Iterator[bytes]:
    """Lines of the input; its end ends the process. Unbuffered: a daemon thread that waits in a buffered reader
    aborts the interpreter's own end."""
    rest = b""
    while data := os.read(0, 65536):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    os._exit(70)


def adapted(broker: Any, adapter: str | None) -> Any:
    """The broker inside the adapter of that name (`module:function`), if any."""
    if adapter is None:
        return broker
    module, _, function = adapter.partition(":")
    return getattr(importlib.import_module(module), function)(broker)


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:
        os._exit(70)
