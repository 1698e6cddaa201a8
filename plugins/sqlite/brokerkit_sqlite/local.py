"""The local broker of `sqlite`: a path."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from brokerkit.local.contract import Chosen
from brokerkit.local.embedded import EmbeddedBroker


class LocalFile(EmbeddedBroker):
    name = "sqlite"
    fast_settings = MappingProxyType({"lease_seconds": "2"})

    def provision(self) -> Chosen:
        return Chosen("installed", "SQLite", sqlite3.sqlite_version, "broker", "it comes with Python")

    def place(self, directory: Path) -> str:
        return f"sqlite:///{quote(str(directory / 'queue.db'))}"


def brokers() -> Mapping[str, type[LocalFile]]:
    return {"sqlite": LocalFile}
