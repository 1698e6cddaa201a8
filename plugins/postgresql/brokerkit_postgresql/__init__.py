"""brokerkit store: PostgreSQL on this machine. What is done with one is the core's (`brokerkit.once`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from brokerkit.plugins import LocalTargets, hookimpl

if TYPE_CHECKING:
    from brokerkit.driver import Codec
    from brokerkit.local.contract import LocalBroker


def _local() -> Mapping[str, Callable[[], LocalBroker]]:
    from brokerkit_postgresql.local import stores

    return stores()


@hookimpl
def brokerkit_stores() -> LocalTargets:
    return _local


def _codec() -> Codec:
    from brokerkit_postgresql.wire import PostgresqlCodec

    return PostgresqlCodec()


@hookimpl
def brokerkit_store_codecs() -> Mapping[str, Callable[[], Codec]]:
    return {"postgresql": _codec, "postgres": _codec}
