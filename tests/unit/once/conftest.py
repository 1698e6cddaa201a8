"""A service of the tests' own, over real HTTP."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Service(ThreadingHTTPServer):
    """Does what `script` says, a word a request: `drop` after the effect, a status, or else answers 201."""

    def __init__(self) -> None:
        self.script: Iterator[str] = itertools.repeat("")
        self.requests: list[tuple[str, str, bytes, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.command, self.path, body, dict(self.headers)))
        word = next(self.server.script, "")
        if word == "drop":
            self.close_connection = True
            return
        said = f"charged {len(self.server.requests)}".encode()
        self.send_response(int(word or 201))
        self.send_header("Content-Length", str(len(said)))
        self.send_header("Location", "/charges/1")
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.shutdown()
        thread.join(10)
