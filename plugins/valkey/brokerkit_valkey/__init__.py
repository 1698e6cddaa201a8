"""brokerkit store: Valkey (or Redis) on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from brokerkit.plugins import LocalTargets, hookimpl

if TYPE_CHECKING:
    from brokerkit.local.contract import LocalBroker


def _local() -> Mapping[str, Callable[[], LocalBroker]]:
    from brokerkit_valkey.local import stores

    return stores()


@hookimpl
def brokerkit_stores() -> LocalTargets:
    return _local
