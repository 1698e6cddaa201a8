"""Which store a URL, or a connection of the user's own, belongs to."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from brokerkit.errors import ConfigurationError
from brokerkit.once.stores.contract import Store

_MODULES = {"postgresql": "psycopg", "sqlite": "sqlite3"}
"""Modules of this package, each with the client library whose connections are its own."""
VALKEY = ("valkey", "valkeys", "redis", "rediss")
_SCHEMES = {"postgresql": "postgresql", "postgres": "postgresql", "sqlite": "sqlite"}


def has_tables(url: str) -> bool:
    """Whether the store of a URL has tables, for an inbox and an outbox; idempotency keys fit into any."""
    return url.partition("://")[0].lower() not in VALKEY


def product(url: str) -> str:
    """Whose store it is, as a user would say. Raises ConfigurationError as `store_for` does."""
    return store_for(url).product if has_tables(url) else "Valkey"


def store_for(url: str) -> Store:
    """The store of a URL. Raises ConfigurationError, also when its client library is not installed."""
    scheme = url.partition("://")[0].lower() if isinstance(url, str) and "://" in url else ""
    if scheme in VALKEY:
        raise ConfigurationError(
            f"a {scheme}:// store keeps idempotency keys and nothing else: it needs no tables and no pruning"
        )
    if scheme not in _SCHEMES:
        raise ConfigurationError(
            "a store's URL looks like postgresql://user@host/database or sqlite:///file.db; "
            + (f"no store serves {scheme}:// URLs" if scheme else "got none")
        )
    return _store(_SCHEMES[scheme])


def store_of(connection: Any) -> tuple[Store, Any]:
    """The store of a connection, and the client library's own connection in it: given that itself, SQLAlchemy's
    Session or Connection, or Django's `connection`.

    Raises ConfigurationError for anything else."""
    raw = _unwrapped(connection)
    for name, client in _MODULES.items():
        if client in sys.modules and _store(name).owns(raw):
            return _store(name), raw
    raise ConfigurationError(
        f"{type(connection).__module__}.{type(connection).__qualname__} is no connection that brokerkit knows: give it "
        "a psycopg.Connection or sqlite3.Connection, or SQLAlchemy's or Django's over one of these"
    )


def _unwrapped(connection: Any) -> Any:
    if hasattr(connection, "get_bind") and callable(getattr(connection, "connection", None)):
        connection = connection.connection()  # SQLAlchemy's Session, which begins with it
    if hasattr(connection, "exec_driver_sql"):
        return connection.connection.driver_connection  # SQLAlchemy's Connection
    if hasattr(connection, "ensure_connection"):
        connection.ensure_connection()
        return connection.connection  # Django's
    return connection


def _store(name: str) -> Store:
    store: Store = importlib.import_module(f"{__name__}.{name}").STORE
    return store
