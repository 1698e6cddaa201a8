"""Starts the local brokers of a run, each when the first work needs it, and ends them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from benchmarks.works import Broker
from brokerkit.local.keeper import temporary_directory
from brokerkit.local.targets import target
from brokerkit.plugins import plugins

SETTINGS: Mapping[str, dict[str, str]] = {
    # Its file takes some 2,000 messages a second whatever a client does, and what is measured is clients.
    "sqs": {"messages": "memory", "jvm.options": "-XX:TieredStopAtLevel=4", "jvm.heap": "512m"},
}
"""What brokers are told beyond their defaults."""


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
            local.start(folder / "broker", settings=SETTINGS.get(name))
            with brokerkit.connect(local.url()) as broker:
                about = {**broker.describe(), "provider": chosen.provider, "version": chosen.version}
                about |= SETTINGS.get(name, {})
            yield Broker(name, local.url(), folder), about
        finally:
            local.stop()


@contextmanager
def store() -> Iterator[str]:
    """The URL of a PostgreSQL of the run's own, with brokerkit's tables."""
    from brokerkit.once import init

    with temporary_directory("brokerkit-bench-") as folder:
        server = target("postgresql")
        try:
            server.start(folder)
            init(server.url())
            yield server.url()
        finally:
            server.stop()
