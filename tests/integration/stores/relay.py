"""A TCP relay that swallows the answer to a commit: the server has done it, and the client never hears."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Relay:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.port is not None
        self._server = parts.hostname or "", parts.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = url.replace(f":{parts.port}/", f":{self._listener.getsockname()[1]}/")
        self.swallow = 0
        """How many commits' answers are still to be swallowed, with the connection."""
        self.swallowed = 0
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                cut = threading.Event()
                threading.Thread(target=self._forth, args=(client, server, cut), daemon=True).start()
                threading.Thread(target=self._back, args=(server, client, cut), daemon=True).start()

    def _forth(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if self.swallow and b"commit\0" in data.lower():
                    self.swallow -= 1
                    cut.set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _back(self, server: socket.socket, client: socket.socket, cut: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if cut.is_set():  # this is the answer: it has happened
                    assert b"COMMIT" in data
                    self.swallowed += 1
                    for end in (client, server):
                        end.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes who waits there, as a close does not
            each.close()


@contextmanager
def relay(url: str) -> Iterator[Relay]:
    made = Relay(url)
    try:
        yield made
    finally:
        made.close()
