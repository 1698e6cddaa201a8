"""pytest fixtures: a real broker per installed plugin, one for the session, fetched and started at first use.

    def test_ledger(kafka):
        broker = brokerkit.connect(kafka.url)
        broker.declare(kafka.name("payments"), subscriptions=["ledger"])

A fixture bears the plugin's name (`rabbitmq`, `kafka`, `sqlite`); `local_broker("rabbitmq:3.10")` gives any other
target. Each pytest-xdist worker has brokers of its own. A broker that cannot be had here skips the test and says
what would make it work; with CI set that is a failure, unless the machine lacks it by its nature (see Unavailable).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from brokerkit.local.fixtures import TestBroker


@pytest.fixture(scope="session")
def local_broker() -> Iterator[Callable[..., TestBroker]]:
    """A function from target name to a running broker; asked twice, it gives the same one."""
    from brokerkit.local.fixtures import Brokers

    with Brokers() as brokers:
        yield brokers.get


def pytest_configure(config: pytest.Config) -> None:
    named = ModuleType("brokerkit_brokers")
    for name in _names():
        setattr(named, name, _fixture(name))
    config.pluginmanager.register(named, "brokerkit-brokers")


def _names() -> list[str]:
    """Plugins that have a local broker, as their distributions' files tell: nothing is imported."""
    return [point.name for point in importlib.metadata.entry_points(group="brokerkit") if _has_local(point.module)]


def _has_local(module: str) -> bool:
    spec = importlib.util.find_spec(module) if "." not in module else None
    return any(
        Path(folder, place).exists()
        for folder in (spec.submodule_search_locations or () if spec is not None else ())
        for place in ("local.py", "local/__init__.py")
    )


def _fixture(target: str) -> Any:
    def broker(local_broker: Callable[..., TestBroker]) -> TestBroker:
        return local_broker(target)

    broker.__doc__ = f"A real broker, `{target}`, one for the session."
    return pytest.fixture(scope="session", name=target)(broker)
