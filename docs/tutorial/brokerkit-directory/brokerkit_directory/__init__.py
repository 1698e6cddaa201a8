"""brokerkit plugin: a broker that is a directory. `dir:///var/spool/queues?lease_seconds=30`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from brokerkit.errors import ConfigurationError
from brokerkit.plugins import Plugin, Settings, Url, hookimpl

if TYPE_CHECKING:
    from brokerkit.driver import Driver
    from brokerkit.local.contract import LocalBroker


class DirectorySettings(Settings):
    """What may follow the question mark."""

    lease_seconds: float = Field(default=30.0, gt=0)
    """How long a delivery is its consumer's; brokerkit renews it while the handler works."""


def _open(url: Url, settings: DirectorySettings) -> Driver:
    from brokerkit_directory.driver import DirectoryDriver

    if url.netloc or not url.path.strip("/"):
        raise ConfigurationError("a directory has no host: write dir:///absolute/path, with three slashes")
    if settings.client:
        raise ConfigurationError(f"dir:// has no client library, so no option client.{next(iter(settings.client))}")
    return DirectoryDriver(Path(url.path), settings.lease_seconds)


def _local() -> Mapping[str, Callable[[], LocalBroker]]:
    from brokerkit_directory.local import LocalDirectory

    return {"dir": LocalDirectory}


@hookimpl
def brokerkit_plugins() -> Sequence[Plugin]:
    return [Plugin("dir", ("dir",), DirectorySettings, _open, local=_local)]
