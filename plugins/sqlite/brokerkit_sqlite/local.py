"""The local broker of `sqlite`: a path. There is no process to start, stop or kill."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote, urlencode

from brokerkit.errors import NotSupported
from brokerkit.local.contract import Chosen, LocalBroker


class LocalFile(LocalBroker):
    name = "sqlite"
    fast_settings = MappingProxyType({"lease_seconds": "2"})

    def __init__(self) -> None:
        self._url = ""

    def provision(self) -> Chosen:
        return Chosen("installed", "SQLite", sqlite3.sqlite_version, "broker", "it comes with Python")

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
            raise NotSupported("sqlite is one file: it has no nodes")
        if through:
            raise NotSupported("sqlite is a file: there is no connection to put a proxy into")
        if secure:
            raise NotSupported("sqlite is a file: its permissions are its security")
        directory.mkdir(parents=True, exist_ok=True)
        path = (directory / "queue.db").absolute()
        query = f"?{urlencode(settings)}" if settings else ""
        self._url = f"sqlite:///{quote(str(path))}{query}"

    def url(self, *, through: bool = False) -> str:
        if through:
            raise NotSupported("sqlite is a file: there is no connection to put a proxy into")
        return self._url

    def upstream(self) -> list[tuple[str, int]]:
        return []

    def pids(self) -> list[int]:
        return []

    def kill(self, node: int = 0) -> None:
        raise NotSupported("sqlite has no broker process to kill: its users are the processes")

    def restart(self, node: int = 0, timeout: float = 60.0) -> None:
        raise NotSupported("sqlite has no broker process to restart")

    def pause(self, node: int = 0) -> None:
        raise NotSupported("sqlite has no broker process to pause")

    def resume(self, node: int = 0) -> None:
        raise NotSupported("sqlite has no broker process to resume")

    def leader(self, topic: str, subscription: str) -> int | None:
        return None

    def stop(self) -> None:
        """Nothing runs."""


def brokers() -> Mapping[str, type[LocalFile]]:
    return {"sqlite": LocalFile}
