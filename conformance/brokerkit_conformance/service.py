"""A service that charges accounts, as others run one: it remembers idempotency keys, and a key charges once. It counts
every call that reaches it, whatever became of the caller."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from brokerkit_conformance.books import Charge
from brokerkit_conformance.money import account_of, dollars_of

KEY = "Idempotency-Key"


class Called(NamedTuple):
    """One call that was received. `message`: whose charge it asks for."""

    key: str
    message: str
    body: bytes


class Service:
    """On loopback, in a thread of its own, until `close`. Thread-safe. `name` is its URL."""

    def __init__(self) -> None:
        self.calls: list[Called] = []
        self._charges: list[Charge] = []
        self._bodies: dict[str, bytes] = {}
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(service._called(str(self.headers[KEY]), body))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.name = f"http://127.0.0.1:{self._server.server_port}/charges"
        threading.Thread(target=self._server.serve_forever, name="service", daemon=True).start()

    def calls_of(self, message: str) -> list[Called]:
        with self._lock:
            return [call for call in self.calls if call.message == message]

    def charged(self) -> set[str]:
        return {charge.message for charge in self.charges()}

    def charges(self) -> list[Charge]:
        with self._lock:
            return list(self._charges)

    def balances(self) -> dict[str, int]:
        sums: Counter[str] = Counter()
        for charge in self.charges():
            sums[str(charge.account)] += charge.dollars
        return dict(sums)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _called(self, key: str, body: bytes) -> int:
        message = str(json.loads(body)["message"])
        with self._lock:
            self.calls.append(Called(key, message, body))
            if key in self._bodies:
                return 200 if self._bodies[key] == body else 422
            self._bodies[key] = body
            row = Charge(message, dollars_of(message), account_of(message), "service", time.monotonic_ns())
            self._charges.append(row)
            return 200
