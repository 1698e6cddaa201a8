"""A local broker without a process: a file or a directory that its users share. There is nothing to kill."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlencode

from brokerkit.errors import NotSupported
from brokerkit.local.contract import LocalBroker


class EmbeddedBroker(LocalBroker):
    """Says by name what needs a process or a network; a subclass says where its broker lies."""

    def __init__(self) -> None:
        self._url = ""

    @abstractmethod
    def place(self, directory: Path) -> str:
        """The URL of a broker in `directory`, which exists; `start` adds the settings."""

    def start(
        self,
        directory: Path,
        *,
        nodes: int = 1,
        through: Sequence[tuple[str, int]] | None = None,
        secure: bool = False,
        settings: dict[str, str] | None = None,
        timeout: float = 90.0,
    ) -> None:
        if nodes != 1:
            raise NotSupported(f"{self.name} has no nodes")
        if through:
            self._no_connection()
        if secure:
            raise NotSupported(f"{self.name} has no TLS: the permissions of its files are its security")
        directory.mkdir(parents=True, exist_ok=True)
        query = f"?{urlencode(settings)}" if settings else ""
        self._url = self.place(directory.absolute()) + query

    def url(self, *, through: bool = False) -> str:
        if through:
            self._no_connection()
        return self._url

    def upstream(self) -> list[tuple[str, int]]:
        return []

    def pids(self) -> list[int]:
        return []

    def kill(self, node: int = 0) -> NoReturn:
        self._no_process()

    def restart(self, node: int = 0, timeout: float = 60.0) -> NoReturn:
        self._no_process()

    def pause(self, node: int = 0) -> NoReturn:
        self._no_process()

    def resume(self, node: int = 0) -> NoReturn:
        self._no_process()

    def leader(self, topic: str, subscription: str) -> int | None:
        return None

    def stop(self) -> None:
        """Nothing runs."""

    def _no_process(self) -> NoReturn:
        raise NotSupported(f"{self.name} has no broker process: its users are the processes")

    def _no_connection(self) -> NoReturn:
        raise NotSupported(f"{self.name} has no connection to put a proxy into")
