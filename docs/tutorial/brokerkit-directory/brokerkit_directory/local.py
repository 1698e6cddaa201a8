"""The local broker of `brokerkit conformance run dir`: a directory needs no process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from brokerkit.errors import NotSupported
from brokerkit.local.contract import Chosen, LocalBroker


class LocalDirectory(LocalBroker):
    """A folder below the one it is given."""

    name = "dir"
    fast_settings = MappingProxyType({"lease_seconds": "2"})

    def __init__(self) -> None:
        self._path: Path | None = None

    def provision(self) -> Chosen:
        return Chosen("installed", "brokerkit directory", "0.1.0", "broker", "it is part of this distribution")

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
        if nodes != 1 or through or secure:
            raise NotSupported("a directory has no nodes, no network and no TLS")
        self._path = directory / "queues"
        self._path.mkdir(parents=True, exist_ok=True)

    def url(self, *, through: bool = False) -> str:
        assert self._path is not None, "start it first"
        return f"dir://{self._path}"

    def upstream(self) -> list[tuple[str, int]]:
        return []

    def pids(self) -> list[int]:
        return []

    def kill(self, node: int = 0) -> NoReturn:
        raise NotSupported("a directory has no process to kill")

    def restart(self, node: int = 0, timeout: float = 60.0) -> NoReturn:
        raise NotSupported("a directory has no process to restart")

    def pause(self, node: int = 0) -> NoReturn:
        raise NotSupported("a directory has no process to pause")

    def resume(self, node: int = 0) -> NoReturn:
        raise NotSupported("a directory has no process to resume")

    def leader(self, topic: str, subscription: str) -> int | None:
        return None

    def stop(self) -> None:
        """Nothing runs."""
