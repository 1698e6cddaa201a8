"""The stores of a run. A cell has one to itself while it runs, so that it may kill it and prune it without asking the
others; then the next cell has it.

    NAME              a local store that an installed distribution offers (`brokerkit up` lists them)
    SCHEME://HOST/…   one that runs somewhere: a cell at a time, never killed or pruned

Stores are found by name and by scheme; nothing here knows one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from brokerkit import once
from brokerkit.driver import Codec
from brokerkit.errors import ConfigurationError
from brokerkit.guarantees import Claim
from brokerkit.local.contract import LocalBroker
from brokerkit.local.keeper import temporary_directory
from brokerkit.local.targets import stores
from brokerkit.once.stores import has_tables, product
from brokerkit.once.stores.contract import shown
from brokerkit.plugins import manager
from brokerkit.url import with_hosts
from brokerkit_conformance.faults import CannotInduce
from brokerkit_conformance.faults.proxy import Proxy


class Store:
    """One that runs, with the tables, and a fault proxy before it where its protocol is known. One cell at a time."""

    def __init__(self, name: str, local: LocalBroker | None, url: str, proxy: Proxy | None, versions: dict[str, str]):
        self.name = name
        self.local = local
        self.proxy = proxy
        self.versions = versions
        self._url = url

    @property
    def ours(self) -> bool:
        """Whether nobody else uses it."""
        return self.local is not None

    @property
    def tables(self) -> bool:
        """Whether there are tables in it; else it keeps idempotency keys and nothing else."""
        return has_tables(self._url)

    @property
    def claim(self) -> Claim:
        """What the store claims of effects in it."""
        return once.durability(self._url).claim()

    @property
    def claim_of_keys(self) -> Claim:
        """What it claims of effects elsewhere, whose keys it keeps."""
        with once.Keys(self._url, "conformance") as keys:
            return keys.claim

    def url(self, *, through: bool = False) -> str:
        """`through`: by way of the proxy. Raises CannotInduce where there is none."""
        if not through:
            return self._url
        host, port = self.network.addresses[0]
        return with_hosts(self._url, f"{host}:{port}")

    @property
    def network(self) -> Proxy:
        """Raises CannotInduce where there is none."""
        if self.proxy is None:
            raise CannotInduce("the store is not reached over a connection whose protocol is known: none can be cut")
        return self.proxy

    def need_process(self) -> LocalBroker:
        """What kills it and starts it again. Raises CannotInduce."""
        if self.local is None:
            raise CannotInduce("the store was not started here: its process cannot be touched")
        if not any(self.local.pids()):
            raise CannotInduce("the store has no process of its own that could be killed: its users are the processes")
        return self.local

    def need_own(self) -> None:
        """Raises CannotInduce where others' rows could be hit."""
        if not self.ours:
            raise CannotInduce("the store was not started here: what is in it is not forgotten from here")


@dataclass(slots=True)
class _Kind:
    """Every store of one name."""

    make: Callable[[], LocalBroker] | None
    url: str
    versions: dict[str, str] = field(default_factory=dict)
    free: list[Store] = field(default_factory=list)
    turn: threading.Semaphore | None = None


class Stores:
    """The stores that a run names. A context manager: its exit ends all of them. Thread-safe inside."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        """Raises ConfigurationError that lists what there is."""
        self._kinds = {_shown(name): _understood(name) for name in dict.fromkeys(names)}
        self._lock = threading.Lock()
        self._stack = ExitStack()

    @property
    def names(self) -> list[str]:
        return list(self._kinds)

    @property
    def versions(self) -> dict[str, dict[str, str]]:
        """What each is, and the settings of its durability; as far as one was started."""
        return {name: dict(kind.versions) for name, kind in self._kinds.items()}

    def provision(self) -> None:
        """Fetches what is missing, before the run. Raises Unavailable."""
        for kind in self._kinds.values():
            if kind.make is not None:
                kind.make().provision()

    @contextmanager
    def taken(self, name: str) -> Iterator[Store]:
        """A store of that name for one cell, started if all are taken. Raises Unavailable, StartFailed,
        BrokerkitError."""
        kind = self._kinds[name]
        with ExitStack() as turn:
            if kind.turn is not None:
                turn.enter_context(kind.turn)
            with self._lock:
                store = kind.free.pop() if kind.free else None
            store = store or self._started(name, kind)
            yield store
            # What a cell broke and left broken, or never came back from, nobody has after it.
            if store.local is None or all(store.local.pids()):
                with self._lock:
                    kind.free.append(store)

    def close(self) -> None:
        """Ends all of them. No cell may be running."""
        self._stack.close()

    def __enter__(self) -> Stores:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self, name: str, kind: _Kind) -> Store:
        own = ExitStack()
        with self._lock:
            self._stack.push(own)
        local, url = None, kind.url
        if kind.make is not None:
            local = kind.make()
            chosen = local.provision()
            kind.versions.update(product=chosen.product, version=chosen.version, provider=chosen.provider)
            directory = own.enter_context(temporary_directory("brokerkit-store-"))
            own.callback(local.stop)
            local.start(directory)
            url = local.url()
            if chosen.provider == "running":
                local = None
        if has_tables(url):
            once.init(url)
        with once.Keys(url, "conformance") as keys:
            kind.versions.update(keys.durability.settings)
        codec = _codec(url)
        proxy = None
        if local is not None and codec is not None:
            proxy = Proxy(1, codec)
            own.callback(proxy.stop)
            proxy.serve(local.upstream())
        return Store(name, local, url, proxy, dict(kind.versions))


def _understood(name: str) -> _Kind:
    if "://" in name:
        return _Kind(None, name, {"product": product(name)}, turn=threading.Semaphore(1))
    offered = stores()
    if name not in offered:
        raise ConfigurationError(f"no store {name!r}: there are {', '.join(sorted(offered))}, or any store's URL")
    return _Kind(offered[name], "")


def _shown(name: str) -> str:
    return shown(name) if "://" in name else name


def _codec(url: str) -> Callable[[], Codec] | None:
    codecs: dict[str, Any] = {}
    for some in manager().hook.brokerkit_store_codecs():
        codecs.update(some)
    return codecs.get(url.partition("://")[0])
