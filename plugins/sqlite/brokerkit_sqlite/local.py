"""The local broker of `sqlite`, and the local store: a path each."""

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


class LocalStore(EmbeddedBroker):
    """A file for a user's own rows; never the broker's, for a file has one writer at a time."""

    name = "sqlite"

    def provision(self) -> Chosen:
        return Chosen("installed", "SQLite", sqlite3.sqlite_version, "service", "it comes with Python")

    def place(self, directory: Path) -> str:
        return f"sqlite:///{quote(str(directory / 'store.db'))}"


def stores() -> Mapping[str, type[LocalStore]]:
    return {"sqlite": LocalStore}
