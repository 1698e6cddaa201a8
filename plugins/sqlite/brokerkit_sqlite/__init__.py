"""brokerkit plugin: an embedded broker in one SQLite file, durable, shared by the processes of one machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from brokerkit.plugins import LocalTargets, Plugin, Url, hookimpl
from brokerkit_sqlite.settings import SqliteSettings

if TYPE_CHECKING:
    from brokerkit.driver import Driver
    from brokerkit.local.contract import LocalBroker


def _open(url: Url, settings: SqliteSettings) -> Driver:
    from brokerkit_sqlite.driver import SqliteDriver

    return SqliteDriver(url, settings)


def _local() -> Mapping[str, Callable[[], LocalBroker]]:
    from brokerkit_sqlite.local import brokers

    return brokers()


def _stores() -> Mapping[str, Callable[[], LocalBroker]]:
    from brokerkit_sqlite.local import stores

    return stores()


@hookimpl
def brokerkit_plugins() -> Sequence[Plugin]:
    return [Plugin("sqlite", ("sqlite",), SqliteSettings, _open, local=_local)]


@hookimpl
def brokerkit_stores() -> LocalTargets:
    return _stores
