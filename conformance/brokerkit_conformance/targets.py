"""What is judged: a plugin's local broker with any settings, or any URL.

    NAME                        the plugin's default local broker
    NAME:3.10                   another one that the plugin offers by that name
    NAME:3nodes                 of three nodes
    NAME?queue=classic          with settings, as in a URL
    NAME:3nodes?client.acks=1   both
    SCHEME://HOST:PORT/?…       what runs somewhere; it is not started, killed or paused

Plugins are found by name and by scheme; nothing here knows one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

import brokerkit
from brokerkit.driver import Capabilities
from brokerkit.errors import ConfigurationError, GuaranteeNotOffered
from brokerkit.guarantees import Claims
from brokerkit.local.contract import LocalBroker
from brokerkit.local.keeper import temporary_directory
from brokerkit.plugins import Plugin, plugins
from brokerkit.url import parse, with_hosts
from brokerkit_conformance.faults import CannotInduce
from brokerkit_conformance.faults.proxy import Proxy

_NODES = re.compile(r"(\d)nodes?")


@dataclass(frozen=True, slots=True)
class Asked:
    """A target as named by the user, understood and not started."""

    name: str
    plugin: Plugin
    settings: Mapping[str, str] = field(default_factory=dict)
    nodes: int = 1
    url: str | None = None
    make: Callable[[], LocalBroker] | None = None


def understand(name: str) -> Asked:
    """Raises ConfigurationError that lists what there is, or says what is wrong with a URL."""
    if "://" in name:
        plugin, url, _ = parse(name, {})
        user = "" if url.username is None else f"{url.username}@"
        return Asked(f"{url.scheme}://{user}{url.netloc}{url.path}", plugin, url=name)
    base, _, query = name.partition("?")
    parts = base.split(":")
    nodes = 1
    if len(parts) > 1 and (several := _NODES.fullmatch(parts[-1])):
        nodes = int(several[1])
        parts.pop()
    base = ":".join(parts)
    offered = local_brokers()
    if base not in offered:
        raise ConfigurationError(f"no target {base!r}: there are {', '.join(sorted(offered))}, or any broker URL")
    plugin, make = offered[base]
    return Asked(name, plugin, dict(parse_qsl(query, keep_blank_values=True)), nodes, make=make)


def local_brokers() -> dict[str, tuple[Plugin, Callable[[], LocalBroker]]]:
    """Every local broker that an installed plugin offers, by target name."""
    return {
        name: (plugin, make)
        for plugin in plugins().values()
        if plugin.local is not None and plugin.in_matrix
        for name, make in plugin.local().items()
    }


class Target:
    """A running broker that cells share. `start` and `stop` from one thread, the rest from any."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.name = asked.name
        self.plugin = asked.plugin
        self.local: LocalBroker | None = asked.make() if asked.make else None
        self.proxy: Proxy | None = None
        self.versions: dict[str, str] = {}
        self._folder = ExitStack()

    def start(self) -> None:
        """Provisions and starts the broker, if it is ours, with a fault proxy before it. Raises Unavailable."""
        if self.local is None:
            assert self.asked.url is not None
            self.proxy = _proxy_before(self.asked.url, self.plugin)
        else:
            chosen = self.local.provision()
            self.versions.update(provider=chosen.provider, product=chosen.product, version=chosen.version)
            self.versions["kind"] = chosen.kind
            self._start_local(self.local)
        with self.connect() as broker:
            self.versions.update({name: str(value) for name, value in broker.describe().items()})
            self.capabilities: Capabilities = broker.capabilities

    def stop(self) -> None:
        if self.proxy is not None:
            self.proxy.stop()
        if self.local is not None:
            self.local.stop()
        self._folder.close()

    def __enter__(self) -> Target:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def url(self, settings: Mapping[str, str] | None = None, *, through: bool = False) -> str:
        """The URL of actors, with the target's settings and then these; `through` the fault proxy. Raises
        CannotInduce."""
        return with_settings(self._own_url(through), settings or {})

    def _own_url(self, through: bool) -> str:
        if through and self.proxy is None:
            raise CannotInduce("it is not reached over a network in which a frame could be lost")
        if self.local is None:
            assert self.asked.url is not None
            if not through or self.proxy is None:
                return self.asked.url
            host, port = self.proxy.addresses[0]
            return with_hosts(self.asked.url, f"{host}:{port}")
        quick = self.local.fast_settings
        return with_settings(self.local.url(through=through), {**quick, **self.asked.settings})

    def connect(self, settings: Mapping[str, str] | None = None) -> brokerkit.Broker:
        return brokerkit.connect(self.url(settings))

    def claims(self, producer: str, consumer: str) -> Claims:
        """None where the broker does not offer this pair."""
        with self.connect() as broker:
            try:
                return broker.claims(producer, consumer)
            except GuaranteeNotOffered:
                return Claims()

    @property
    def cells_at_once(self) -> int | None:
        """How many cells it bears at a time, where it says so."""
        return None if self.local is None else self.local.cells_at_once

    def bearable(self, rate: float) -> float:
        """This many sends a second, or as many as it bears."""
        most = None if self.local is None else self.local.sends_a_second
        return rate if most is None else min(rate, most)

    @property
    def nodes(self) -> int:
        """How many broker processes of ours there are; 0 where there is none to kill."""
        return 0 if self.local is None else sum(1 for pid in self.local.pids() if pid)

    def _start_local(self, local: LocalBroker) -> None:
        directory = self._folder.enter_context(temporary_directory("brokerkit-conformance-"))
        if self.plugin.codec is None:
            local.start(directory, nodes=self.asked.nodes)
            return
        self.proxy = Proxy(self.asked.nodes, self.plugin.codec)
        local.start(directory, nodes=self.asked.nodes, through=self.proxy.addresses)
        self.proxy.serve(local.upstream())


def _proxy_before(url: str, plugin: Plugin) -> Proxy | None:
    """A proxy before a broker that runs somewhere: only where the URL names one host and its port."""
    hosts = parse(url, {})[1].hosts
    if plugin.codec is None or len(hosts) != 1:
        return None
    [(host, port)] = hosts
    if port is None:
        return None
    proxy = Proxy(1, plugin.codec)
    proxy.serve([(host, port)])
    return proxy


def with_settings(url: str, settings: Mapping[str, str]) -> str:
    """`url` with these parameters, which win over its own."""
    if not settings:
        return url
    base, _, query = url.partition("?")
    merged = {**dict(parse_qsl(query, keep_blank_values=True)), **settings}
    return f"{base}?{urlencode(merged)}"
