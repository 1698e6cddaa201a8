"""Local brokers whose nodes are processes of this machine: the part of the life cycle that is the same for each."""

from __future__ import annotations

import uuid
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from brokerkit.errors import NotSupported
from brokerkit.local.contract import Chosen, LocalBroker, StartFailed
from brokerkit.local.deathwatch import end_marked
from brokerkit.local.ports import LOOPBACK, Ports
from brokerkit.local.processes import Process, wait_until

NODE_MARK = "BROKERKIT_BROKER"
"""Environment variable that marks the processes of one started broker, helpers included."""


class ProcessBroker(LocalBroker):
    """A broker whose nodes are child processes. A subclass prepares the nodes and says when one serves clients."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[Process] = []
        self._ports: Ports | None = None
        self._through: list[tuple[str, int]] | None = None
        self._secure = False
        self._run = ""

    @abstractmethod
    def _prepare(self, directory: Path, nodes: int, settings: dict[str, str], timeout: float) -> list[Process]:
        """Reserves ports, writes configuration and makes the nodes' processes without starting them."""

    @abstractmethod
    def _serving(self, node: int) -> bool:
        """Whether the node answers clients now. Called often; takes a second at most."""

    def _before(self, timeout: float) -> None:
        """Called before the first node starts."""

    def _whole(self, timeout: float) -> None:
        """Called when every node serves: returns when they are one cluster."""

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
        if self._nodes:
            raise StartFailed(f"{self.name} is started already")
        if through is not None and len(through) != nodes:
            raise ValueError(f"{nodes} nodes need as many addresses in `through`, not {len(through)}")
        self.provision()
        self._run = uuid.uuid4().hex
        self._secure = secure
        self._through = list(through) if through is not None else None
        directory.mkdir(parents=True, exist_ok=True)
        try:
            self._nodes = self._prepare(directory.absolute(), nodes, settings or {}, timeout)
            self._before(timeout)
            for node in self._nodes:
                node.start()
            self._await(range(nodes), timeout)
            self._whole(timeout)
        except BaseException:
            self.stop()
            raise

    def pids(self) -> list[int]:
        return [node.pid for node in self._nodes]

    def kill(self, node: int = 0) -> None:
        self._nodes[node].kill()

    def restart(self, node: int = 0, timeout: float = 60.0) -> None:
        self._nodes[node].kill()
        self._nodes[node].start()
        self._await([node], timeout)

    def pause(self, node: int = 0) -> None:
        self._nodes[node].pause()

    def resume(self, node: int = 0) -> None:
        self._nodes[node].resume()

    def stop(self) -> None:
        for node in self._nodes:
            node.kill()
        if self._run:
            end_marked(NODE_MARK, self._run)
        self._nodes = []
        if self._ports is not None:
            self._ports.release()

    def _await(self, nodes: Sequence[int], timeout: float) -> None:
        processes = [self._nodes[node] for node in nodes]
        wait_until(lambda: all(self._serving(node) for node in nodes), timeout, f"{self.name}: ready", processes)

    def _alive(self) -> list[int]:
        """Nodes that run and are not paused."""
        return [index for index, node in enumerate(self._nodes) if node.pid and not node.paused]

    @property
    def _mark(self) -> dict[str, str]:
        return {NODE_MARK: self._run}


class _Installed(Protocol):
    @property
    def chosen(self) -> Chosen: ...


_Installation = TypeVar("_Installation", bound=_Installed)


class FoundBroker(ProcessBroker, Generic[_Installation]):
    """A broker whose programs `find` looks for, or fetches, once; it says how they were come by."""

    def __init__(self, name: str, find: Callable[[], _Installation]) -> None:
        super().__init__(name)
        self._find = find
        self._installation: _Installation | None = None

    def provision(self) -> Chosen:
        return self._found.chosen

    @property
    def _found(self) -> _Installation:
        if self._installation is None:
            self._installation = self._find()
        return self._installation


class SingleBroker(ProcessBroker):
    """A broker of one node, on one port of loopback, without TLS and credentials."""

    alone = "is one process"
    insecure = "has neither TLS nor credentials"

    def upstream(self) -> list[tuple[str, int]]:
        assert self._ports is not None, "start it first"
        return [(LOOPBACK, self._ports[0])]

    def leader(self, topic: str, subscription: str) -> int | None:
        return None

    def _address(self, through: bool) -> tuple[str, int]:
        return self._through[0] if through and self._through else self.upstream()[0]

    def _take_port(self, nodes: int) -> int:
        """The one it serves on. Raises NotSupported for what it is not."""
        if nodes != 1:
            raise NotSupported(f"{self.name} {self.alone}: it has no nodes")
        if self._secure:
            raise NotSupported(f"{self.name} {self.insecure}")
        self._ports = Ports(1)
        return self._ports[0]


class ForgetfulBroker(SingleBroker):
    """One that keeps nothing on disk, so that a restart would bring up another, empty one."""

    def kill(self, node: int = 0) -> None:
        raise NotSupported(f"{self.name} keeps nothing on disk: killed, it could not be started again on its data")

    def restart(self, node: int = 0, timeout: float = 60.0) -> None:
        raise NotSupported(f"{self.name} keeps nothing on disk: it cannot be started again on its data")
