"""The local broker of `brokerkit conformance run dir`: a directory needs no process."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from brokerkit.local.contract import Chosen
from brokerkit.local.embedded import EmbeddedBroker


class LocalDirectory(EmbeddedBroker):
    """A folder below the one it is given."""

    name = "dir"
    fast_settings = MappingProxyType({"lease_seconds": "6"})

    def provision(self) -> Chosen:
        return Chosen("installed", "brokerkit directory", "0.1.0", "broker", "it is part of this distribution")

    def place(self, directory: Path) -> str:
        (directory / "queues").mkdir(exist_ok=True)
        return f"dir://{directory / 'queues'}"
