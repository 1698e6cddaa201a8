"""The local brokers and stores that installed distributions offer, by target name."""

from __future__ import annotations

from collections.abc import Callable

from brokerkit.errors import ConfigurationError
from brokerkit.local.contract import LocalBroker
from brokerkit.plugins import manager, plugins


def targets() -> dict[str, Callable[[], LocalBroker]]:
    """Every target of every installed plugin: its name, and what makes one that is not started; then the stores, of
    which one that bears a broker's name is that broker here."""
    brokers = {
        name: make for plugin in plugins().values() if plugin.local is not None for name, make in plugin.local().items()
    }
    return brokers | {name: make for name, make in stores().items() if name not in brokers}


def stores() -> dict[str, Callable[[], LocalBroker]]:
    """The stores among the targets. One is started, killed and ended as a broker is; its URL is one for `store=`."""
    return {name: make for local in manager().hook.brokerkit_stores() for name, make in local().items()}


def target(name: str) -> LocalBroker:
    """A broker of that name, not started. Raises ConfigurationError that lists the names there are."""
    known = targets()
    if name not in known:
        raise ConfigurationError(
            f"no local broker is called {name!r}; there are: {', '.join(known) or 'none, install a plugin'}"
        )
    return known[name]()
