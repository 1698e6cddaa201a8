"""brokerkit plugin: an in-process broker for unit tests. `memory://name`; everything ends with the process."""

from collections.abc import Sequence

from brokerkit.driver import Driver
from brokerkit.plugins import Plugin, Settings, Url, hookimpl


class MemorySettings(Settings):
    """`memory://` has no options of its own."""


def _open(url: Url, settings: MemorySettings) -> Driver:
    from brokerkit_memory.driver import MemoryDriver

    return MemoryDriver(url.netloc or "default", settings.client)


@hookimpl
def brokerkit_plugins() -> Sequence[Plugin]:
    return [Plugin("memory", ("memory",), MemorySettings, _open, in_matrix=False)]
