"""The local brokers that installed plugins offer, by target name."""

from __future__ import annotations

from collections.abc import Callable

from brokerkit.errors import ConfigurationError
from brokerkit.local.contract import LocalBroker
from brokerkit.plugins import plugins


def targets() -> dict[str, Callable[[], LocalBroker]]:
    """Every target of every installed plugin: its name, and what makes a broker that is not started."""
    return {
        name: make for plugin in plugins().values() if plugin.local is not None for name, make in plugin.local().items()
    }


def target(name: str) -> LocalBroker:
    """A broker of that name, not started. Raises ConfigurationError that lists the names there are."""
    known = targets()
    if name not in known:
        raise ConfigurationError(
            f"no local broker is called {name!r}; there are: {', '.join(known) or 'none, install a plugin'}"
        )
    return known[name]()
