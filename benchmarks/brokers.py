"""Starts the local brokers of a run, each when the first work needs it, and ends them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.works import Broker
from brokerkit.local.keeper import temporary_directory
from brokerkit.plugins import plugins


@contextmanager
def started(name: str) -> Iterator[tuple[Broker, dict[str, str]]]:
    """The plugin's default local broker, with what it says of itself. Raises Unavailable."""
    import brokerkit

    plugin = plugins()[name]
    assert plugin.local is not None
    local = plugin.local()[name]()
    chosen = local.provision()
    with temporary_directory("brokerkit-bench-") as folder:
        try:
            local.start(folder / "broker")
            with brokerkit.connect(local.url()) as broker:
                about = {**broker.describe(), "provider": chosen.provider, "version": chosen.version}
            yield Broker(name, local.url(), folder), about
        finally:
            local.stop()
