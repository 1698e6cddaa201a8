"""Local brokers in containers, through testcontainers: the last way of the chain, for one node."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brokerkit.errors import NotSupported
from brokerkit.local.contract import Chosen, LocalBroker, StartFailed, Unavailable
from brokerkit.local.ports import LOOPBACK, Ports


class ContainerBroker(LocalBroker):
    """One node in a container at a fixed port of loopback. testcontainers' reaper ends it with its owner."""

    def __init__(self, name: str, product: str, version: str, image: str, port: int) -> None:
        self.name = name
        self._product = product
        self._version = version
        self._image = image
        self._inner_port = port
        self._ports: Ports | None = None
        self._container: Any = None
        self._through: list[tuple[str, int]] | None = None

    @abstractmethod
    def _url(self, hosts: Sequence[tuple[str, int]]) -> str:
        """URL of the broker at these addresses."""

    @abstractmethod
    def _serving(self, address: tuple[str, int]) -> bool:
        """Whether it answers clients."""

    def _environment(self, port: int) -> dict[str, str]:
        """Environment of the container that is reached at `port`."""
        return {}

    def provision(self) -> Chosen:
        try:
            import docker
            from docker.errors import DockerException
        except ImportError:
            raise Unavailable(
                "pip install 'brokerkit-mq[local]' (testcontainers) and start a Docker engine", excusable=True
            ) from None
        try:
            client = docker.from_env(timeout=10)
            client.ping()
            client.close()
        except DockerException:
            raise Unavailable("start a Docker engine: none answers here", excusable=True) from None
        return Chosen("docker", self._product, self._version, "broker", f"image {self._image}")

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
        if nodes != 1 or secure or settings:
            raise StartFailed(f"{self.name} in a container has one node, no TLS and no settings")
        from testcontainers.core.container import DockerContainer

        self._through = list(through) if through is not None else None
        self._ports = Ports(1)
        container: Any = DockerContainer(self._image)
        container.with_bind_ports(self._inner_port, (LOOPBACK, self._ports[0]))
        for key, value in self._environment(self._through[0][1] if self._through else self._ports[0]).items():
            container.with_env(key, value)
        self._container = container
        try:
            container.start()
            self._await(timeout)
        except BaseException:
            self.stop()
            raise

    def url(self, *, through: bool = False) -> str:
        return self._url(self._through if through and self._through else self.upstream())

    def upstream(self) -> list[tuple[str, int]]:
        return [(LOOPBACK, self._ports[0])] if self._ports is not None else []

    def pids(self) -> list[int]:
        if self._container is None:
            return []
        state = self._docker().attrs["State"]
        return [int(state["Pid"])]

    def kill(self, node: int = 0) -> None:
        container = self._docker()
        container.kill(signal="SIGKILL")
        container.wait(timeout=30)

    def restart(self, node: int = 0, timeout: float = 60.0) -> None:
        self._docker().start()
        self._await(timeout)

    def pause(self, node: int = 0) -> None:
        self._docker().pause()

    def resume(self, node: int = 0) -> None:
        self._docker().unpause()

    def leader(self, topic: str, subscription: str) -> int | None:
        return 0

    def stop(self) -> None:
        container, self._container = self._container, None
        if container is not None and container.get_wrapped_container() is not None:
            container.stop(force=True)
        if self._ports is not None:
            self._ports.release()
            self._ports = None

    def _docker(self) -> Any:
        if self._container is None:
            raise NotSupported(f"{self.name} is not started")
        container = self._container.get_wrapped_container()
        container.reload()
        return container

    def _await(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._serving(self.upstream()[0]):
            if time.monotonic() > deadline:
                said = self._docker().logs(tail=25).decode("utf-8", "replace")
                raise StartFailed(f"{self.name} ({self._image}) not ready after {timeout:g} s\n{said}")
            time.sleep(0.1)
