"""The provider chain: the first way to have a broker that works here, and what the others would need."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from brokerkit.errors import NotSupported
from brokerkit.local.contract import Chosen, LocalBroker, StartFailed, Unavailable
from brokerkit.local.ports import listening
from brokerkit.url import authority, with_hosts

PROVIDER = "BROKERKIT_PROVIDER"
"""Environment variable that leaves only the providers named in it: `recipe`, or `installed,docker`."""


class Chain(LocalBroker):
    """A broker that is had in the first of several ways that works here; everything else is passed on to it."""

    def __init__(
        self,
        name: str,
        candidates: Sequence[tuple[str, LocalBroker]],
        *,
        default_nodes: int = 1,
        fast_settings: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.default_nodes = default_nodes
        self.fast_settings = fast_settings or {}
        self._candidates = candidates
        self._taken: tuple[LocalBroker, Chosen] | None = None

    def provision(self) -> Chosen:
        if self._taken is not None:
            return self._taken[1]
        wanted = [word.strip() for word in os.environ.get(PROVIDER, "").split(",") if word.strip()]
        passed: list[str] = []
        excusable = True
        for provider, candidate in self._candidates:
            if wanted and provider not in wanted:
                passed.append(f"{provider}: left out by {PROVIDER}={os.environ[PROVIDER]}")
                continue
            try:
                chosen = candidate.provision()
            except Unavailable as reason:
                passed.append(f"{provider}: {reason}")
                excusable = excusable and (reason.excusable or provider in ("running", "installed"))
                continue
            self._taken = candidate, replace(chosen, passed=tuple(passed))
            return self._taken[1]
        ways = "\n".join(f"  {reason}" for reason in passed)
        raise Unavailable(
            f"{self.name} cannot be had on this machine. Each of these would do:\n{ways}", excusable=excusable
        )

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
        self.provision()
        self._broker.start(directory, nodes=nodes, through=through, secure=secure, settings=settings, timeout=timeout)

    def url(self, *, through: bool = False) -> str:
        return self._broker.url(through=through)

    def upstream(self) -> list[tuple[str, int]]:
        return self._broker.upstream()

    def pids(self) -> list[int]:
        return self._broker.pids()

    def kill(self, node: int = 0) -> None:
        self._broker.kill(node)

    def restart(self, node: int = 0, timeout: float = 60.0) -> None:
        self._broker.restart(node, timeout)

    def pause(self, node: int = 0) -> None:
        self._broker.pause(node)

    def resume(self, node: int = 0) -> None:
        self._broker.resume(node)

    def leader(self, topic: str, subscription: str) -> int | None:
        return self._broker.leader(topic, subscription)

    def stop(self) -> None:
        if self._taken is not None:
            self._taken[0].stop()

    @property
    def _broker(self) -> LocalBroker:
        if self._taken is None:
            raise StartFailed(f"{self.name} is not started")
        return self._taken[0]


class RunningBroker(LocalBroker):
    """A broker that somebody else runs and the user names. It can be used, and neither killed nor paused from here."""

    def __init__(self, name: str, product: str, default_port: int) -> None:
        self.name = name
        self._product = product
        self._default_port = default_port
        self._through: list[tuple[str, int]] | None = None

    @property
    def variable(self) -> str:
        """The environment variable that names its URL."""
        return url_variable(self.name)

    def provision(self) -> Chosen:
        if not os.environ.get(self.variable):
            raise Unavailable(f"set {self.variable} (or --url) to the URL of a broker that runs")
        return Chosen("running", self._product, "as it is", "service", f"{self.variable} is set")

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
        self.provision()
        if settings:
            raise StartFailed(f"{self.name} runs already and is not configured from here: {', '.join(settings)}")
        if secure and ":" not in authority(self.url())[0]:
            raise StartFailed(f"{self.variable} names no user and password, and `secure` was asked for")
        unreachable = [address for address in self.upstream() if not listening(*address, timeout=5.0)]
        if unreachable:
            named = ", ".join(f"{host}:{port}" for host, port in unreachable)
            raise StartFailed(f"nothing accepts connections at {named}, which {self.variable} names")
        self._through = list(through) if through is not None else None

    def url(self, *, through: bool = False) -> str:
        url = os.environ[self.variable]
        if not through or self._through is None:
            return url
        return with_hosts(url, ",".join(f"{host}:{port}" for host, port in self._through))

    def upstream(self) -> list[tuple[str, int]]:
        _, hosts = authority(os.environ[self.variable])
        return [self._address(host) for host in hosts.split(",")]

    def pids(self) -> list[int]:
        return []

    def kill(self, node: int = 0) -> None:
        self._not_ours("killed")

    def restart(self, node: int = 0, timeout: float = 60.0) -> None:
        self._not_ours("restarted")

    def pause(self, node: int = 0) -> None:
        self._not_ours("paused")

    def resume(self, node: int = 0) -> None:
        self._not_ours("resumed")

    def leader(self, topic: str, subscription: str) -> int | None:
        return None

    def stop(self) -> None:
        """Leaves it running: it is not ours."""

    def _address(self, text: str) -> tuple[str, int]:
        match = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*))(?::(\d*))?", text)
        if match is None:
            raise StartFailed(f"{self.variable} names a host that is none: {text!r}")
        return match[1] or match[2] or "localhost", int(match[3] or self._default_port)

    def _not_ours(self, verb: str) -> None:
        raise NotSupported(f"{self.name} at {self.variable} was not started here and cannot be {verb}")


def url_variable(target: str) -> str:
    """Environment variable that names a running broker for a target: BROKERKIT_RABBITMQ_3_10_URL."""
    return f"BROKERKIT_{re.sub(r'[^A-Za-z0-9]', '_', target).upper()}_URL"
