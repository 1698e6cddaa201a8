"""Local brokers whose nodes are processes of this machine: the part of the life cycle that is the same for each."""

from __future__ import annotations

import uuid
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from brokerkit.local.contract import LocalBroker, StartFailed
from brokerkit.local.deathwatch import end_marked
from brokerkit.local.ports import Ports
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
