"""What a plugin's `local.py` implements to start its broker on this machine, and what the rest may rely on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which provider was taken, and why the earlier ones were not."""

    provider: str
    """`running`, `installed`, `recipe` or `docker`."""
    product: str
    version: str
    kind: str
    """`broker`, `emulator`, `mock` or `service`: what a report may call what it judged."""
    why: str
    passed: tuple[str, ...] = ()
    """The providers that were tried before, each with what it would need."""


class Unavailable(Exception):
    """No provider can start this broker here; the text lists each one with what would make it work.

    `excusable`: the machine lacks it by its nature (no Docker engine, no apt), so that a test may be skipped there
    even where a missing broker is a failure otherwise. Nothing else is on that list.
    """

    def __init__(self, message: str, *, excusable: bool = False) -> None:
        super().__init__(message)
        self.excusable = excusable


class StartFailed(Exception):
    """A provider was chosen, and its broker did not start, or is not running; the text has the end of its log."""


class LocalBroker(ABC):
    """One local broker, of one or more nodes. Not thread-safe. Every process it starts dies with its owner,
    also when the owner is killed with SIGKILL, and it leaves no file outside `directory`.

    Addresses: each node listens for clients directly, and on a second listener that is advertised as
    `through[i]` when given, for brokers that tell clients where to connect. A fault proxy stands at
    `through[i]` and forwards to `upstream()[i]`.
    """

    name: str
    """The target's name, `rabbitmq:3.10`."""

    fast_settings: Mapping[str, str] = {}
    """URL parameters with which heartbeats, sessions and leases run out in seconds, for the conformance suite; the
    user's own settings win over them."""
    cells_at_once: int | None = None
    """How many cells of a conformance run it bears at a time; None: as many as are asked for."""
    sends_a_second: float | None = None
    """What it bears of a steady stream, which the suite's producers then keep to; None: whatever they send."""
    default_nodes: int = 1
    """How many nodes this target means where the caller names no number."""

    @abstractmethod
    def provision(self) -> Chosen:
        """Chooses a provider and fetches what it needs into the user's cache, checked, with progress on
        stderr. Idempotent, safe across processes. Raises Unavailable."""

    @abstractmethod
    def start(
        self,
        directory: Path,
        *,
        nodes: int = 1,
        through: Sequence[tuple[str, int]] | None = None,
        secure: bool = False,
        settings: dict[str, str] | None = None,
        timeout: float = 90.0,
    ) -> None:
        """Starts all nodes and returns when they serve clients, the cluster being whole. `secure`: TLS and
        SASL with generated credentials, told by `url()`. `settings` go into the broker's own configuration;
        what it refuses raises StartFailed with the end of its log."""

    @abstractmethod
    def url(self, *, through: bool = False) -> str:
        """brokerkit URL of the whole cluster; `through`: by way of the proxies."""

    @abstractmethod
    def upstream(self) -> list[tuple[str, int]]:
        """Per node where a proxy forwards to."""

    def environment(self) -> Mapping[str, str]:
        """Environment variables by which the broker's own clients and tools find this one; most read none."""
        return {}

    @abstractmethod
    def pids(self) -> list[int]:
        """Process id of each node's broker, 0 where it is down."""

    @abstractmethod
    def kill(self, node: int = 0) -> None:
        """SIGKILL; returns when the process is gone."""

    @abstractmethod
    def restart(self, node: int = 0, timeout: float = 60.0) -> None:
        """Starts a killed node on the same data, at the same addresses; returns when it serves clients."""

    @abstractmethod
    def pause(self, node: int = 0) -> None:
        """SIGSTOP."""

    @abstractmethod
    def resume(self, node: int = 0) -> None:
        """SIGCONT."""

    @abstractmethod
    def leader(self, topic: str, subscription: str) -> int | None:
        """The node that leads the topic's (or the subscription's) log; None where there is no such thing."""

    @abstractmethod
    def stop(self) -> None:
        """Ends every process by its id. Idempotent; never raises for what is already gone."""
