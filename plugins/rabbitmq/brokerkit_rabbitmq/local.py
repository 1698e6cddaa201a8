"""RabbitMQ on this machine: 4.3 by default, 4.0 and 3.10 beside it, one node or a cluster.

Ways, in this order: a broker the user names, an installed `rabbitmq-server`, Debian's packages of the suite that has
the version wanted (unpacked, no root), a container. Each start has its own epmd, cookie, ports and data.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from brokerkit.local import debian
from brokerkit.local.cache import cached
from brokerkit.local.certificates import Authority
from brokerkit.local.chain import Chain, RunningBroker
from brokerkit.local.contract import Chosen, LocalBroker, StartFailed, Unavailable
from brokerkit.local.docker import ContainerBroker
from brokerkit.local.native import FoundBroker
from brokerkit.local.ports import LOOPBACK, Ports, listening
from brokerkit.local.processes import Process, run, wait_until
from brokerkit.local.progress import Report

SUITES = {"4.3": ("forky", "sid"), "4.0": ("trixie",), "3.10": ("bookworm",)}
"""Debian suites that have a version, the better first."""
DEFAULT = "4.3"


def brokers() -> Mapping[str, Callable[[], LocalBroker]]:
    """Local brokers by target name."""
    return {
        "rabbitmq": lambda: _chain("rabbitmq", DEFAULT, strict=False),
        "rabbitmq:4.3": lambda: _chain("rabbitmq:4.3", "4.3"),
        "rabbitmq:4.0": lambda: _chain("rabbitmq:4.0", "4.0"),
        "rabbitmq:3.10": lambda: _chain("rabbitmq:3.10", "3.10"),
        "rabbitmq:3nodes": lambda: _chain("rabbitmq:3nodes", DEFAULT, strict=False, nodes=3),
    }


def _chain(name: str, version: str, *, strict: bool = True, nodes: int = 1) -> Chain:
    candidates: list[tuple[str, LocalBroker]] = [
        ("running", RunningBroker(name, "RabbitMQ", 5672)),
        ("installed", RabbitBroker(name, lambda: _installed(version if strict else None))),
        ("recipe", RabbitBroker(name, lambda: _unpacked(version, strict))),
        ("docker", _Container(name, version)),
    ]
    return Chain(name, candidates, default_nodes=nodes, fast_settings={"client.heartbeat": "2"})


@dataclass(frozen=True)
class Installation:
    """Where a RabbitMQ is, and how it was come by."""

    chosen: Chosen
    scripts: Path
    """Folder with `rabbitmq-server` and `rabbitmqctl` that do not insist on a user."""
    erlang: Path
    """Folder with `erl` and `epmd`."""
    home: Path
    """Folder with `plugins` and `escript`."""


class RabbitBroker(FoundBroker[Installation]):
    """RabbitMQ nodes as processes: an epmd of their own, then a virtual machine each."""

    def __init__(self, name: str, find: Callable[[], Installation]) -> None:
        super().__init__(name, find)
        self._epmd: Process | None = None
        self._directory = Path()
        self._password = ""

    def url(self, *, through: bool = False) -> str:
        addresses = self._through if through and self._through else self.upstream()
        hosts = ",".join(f"{host}:{port}" for host, port in addresses)
        if not self._secure:
            return f"rabbitmq://{hosts}"
        query = urlencode({"tls_ca": self._directory / "tls/ca.pem"})
        return f"amqps://brokerkit:{self._password}@{hosts}?{query}"

    def upstream(self) -> list[tuple[str, int]]:
        return [(LOOPBACK, self._client_port(node)) for node in range(len(self._nodes))]

    def leader(self, topic: str, subscription: str) -> int | None:
        rows = json.loads(self.ctl("list_queues", "name", "leader", "members", "online"))
        for name in (f"{topic}--{subscription}", subscription, topic):
            for row in rows:
                if row["name"] == name and row.get("leader"):
                    return int(re.sub(r"^n(\d+)@.*$", r"\1", row["leader"])) - 1
        return None

    def ctl(self, *command: str, node: int | None = None, timeout: float = 30.0) -> str:
        """Output of `rabbitmqctl` on a node that runs, as JSON where the command has that."""
        if node is None:
            alive = self._alive()
            if not alive:
                raise StartFailed(f"{self.name}: no node runs that could be asked")
            node = alive[0]
        return run(
            [self._found.scripts / "rabbitmqctl", "--quiet", "--formatter", "json", *command],
            env=self._environment(node),
            timeout=timeout,
        )

    def stop(self) -> None:
        super().stop()
        if self._epmd is not None:
            self._epmd.kill()

    def _prepare(self, directory: Path, nodes: int, settings: dict[str, str], timeout: float) -> list[Process]:
        self._directory = directory
        self._ports = Ports(1 + 3 * nodes)
        home = directory / "home"
        home.mkdir(exist_ok=True)
        cookie = home / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(secrets.token_hex(16))
            cookie.chmod(0o400)
        if self._secure:
            self._password = secrets.token_urlsafe(16)
            Authority().write(directory / "tls", "server")
        processes = []
        for node in range(nodes):
            place = self._place(node)
            place.mkdir(exist_ok=True)
            (place / "plugins").write_text("[].\n")
            (place / "env.conf").write_text("")
            (place / "advanced.config").write_text("[{rabbit, [{channel_tick_interval, 1000}]}].\n")
            conf = place / "rabbitmq.conf"
            conf.touch(mode=0o600)
            conf.write_text("".join(f"{key} = {value}\n" for key, value in self._conf(node, nodes, settings)))
            server = [self._found.scripts / "rabbitmq-server"]
            env = self._environment(node)
            processes.append(Process(f"node {node + 1}", server, env=env, directory=place, log=place / "node.log"))
        self._epmd = Process(
            "epmd",
            [self._found.erlang / "epmd", "-port", str(self._ports[0]), "-address", LOOPBACK],
            env=self._environment(0),
            directory=directory,
            log=directory / "epmd.log",
        )
        return processes

    def _before(self, timeout: float) -> None:
        epmd, ports = self._epmd, self._ports
        assert epmd is not None
        assert ports is not None
        epmd.start()
        wait_until(lambda: listening(LOOPBACK, ports[0]), min(timeout, 15.0), "epmd: listening", [epmd])

    def _serving(self, node: int) -> bool:
        """The broker answers the protocol header: it is past its boot."""
        with suppress(OSError), socket.create_connection((LOOPBACK, self._client_port(node)), 1.0) as connection:
            if not self._secure:
                return _greets(connection)
            context = ssl.create_default_context(cafile=str(self._directory / "tls/ca.pem"))
            with context.wrap_socket(connection, server_hostname="localhost") as wrapped:
                return _greets(wrapped)
        return False

    def _whole(self, timeout: float) -> None:
        if len(self._nodes) == 1:
            return
        status = json.loads(self.ctl("cluster_status", timeout=timeout))
        if len(status["running_nodes"]) != len(self._nodes):
            raise StartFailed(f"{self.name}: the nodes did not form one cluster: {status['running_nodes']}")

    def _conf(self, node: int, nodes: int, settings: dict[str, str]) -> Iterator[tuple[str, object]]:
        port = self._client_port(node)
        values: dict[str, object] = {"log.console": "true", "log.console.level": "info", "log.file": "false"}
        if self._secure:
            tls = self._directory / "tls"
            values |= {
                "listeners.tcp": "none",
                "listeners.ssl.1": f"{LOOPBACK}:{port}",
                "ssl_options.cacertfile": tls / "ca.pem",
                "ssl_options.certfile": tls / "server.pem",
                "ssl_options.keyfile": tls / "server.key",
                "ssl_options.verify": "verify_none",
                "ssl_options.fail_if_no_peer_cert": "false",
                "default_user": "brokerkit",
                "default_pass": self._password,
            }
        else:
            values["listeners.tcp.1"] = f"{LOOPBACK}:{port}"
        if nodes > 1:
            values["cluster_formation.peer_discovery_backend"] = "classic_config"
            for other in range(nodes):
                values[f"cluster_formation.classic_config.nodes.{other + 1}"] = f"n{other + 1}@localhost"
        yield from (values | settings).items()

    def _environment(self, node: int) -> dict[str, str]:
        found, ports, place = self._found, self._ports, self._place(node)
        assert ports is not None
        control = ports[3 + 3 * node]
        only_loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        return {
            **self._mark,
            "HOME": str(self._directory / "home"),
            "LANG": "C.UTF-8",
            "PATH": f"{found.erlang}:{found.scripts}:{os.environ.get('PATH') or os.defpath}",
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(ports[0]),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_HOME": str(found.home),
            "RABBITMQ_NODENAME": f"n{node + 1}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self._client_port(node)),
            "RABBITMQ_DIST_PORT": str(ports[2 + 3 * node]),
            "RABBITMQ_CTL_DIST_PORT_MIN": str(control),
            "RABBITMQ_CTL_DIST_PORT_MAX": str(control),
            "RABBITMQ_CTL_ERL_ARGS": only_loopback,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{only_loopback} -kernel net_ticktime 8",
            "RABBITMQ_MNESIA_BASE": str(place / "data"),
            "RABBITMQ_LOG_BASE": str(place / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(place / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(place / "plugins"),
            "RABBITMQ_PLUGINS_DIR": str(found.home / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(place / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(place / "none"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(place / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(place / "env.conf"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(place / "generated"),
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _client_port(self, node: int) -> int:
        assert self._ports is not None
        return self._ports.numbers[1 + 3 * node]

    def _place(self, node: int) -> Path:
        return self._directory / f"n{node + 1}"


class _Container(ContainerBroker):
    """RabbitMQ's own image."""

    def __init__(self, name: str, version: str) -> None:
        super().__init__(name, "RabbitMQ", version, f"rabbitmq:{version}", 5672)

    def _url(self, hosts: Sequence[tuple[str, int]]) -> str:
        return "rabbitmq://guest:guest@" + ",".join(f"{host}:{port}" for host, port in hosts)

    def _serving(self, address: tuple[str, int]) -> bool:
        with suppress(OSError), socket.create_connection(address, 1.0) as connection:
            return _greets(connection)
        return False


def _greets(connection: socket.socket) -> bool:
    connection.settimeout(2.0)
    connection.sendall(b"AMQP\0\0\x09\x01")
    return connection.recv(1) == b"\x01"


def _installed(version: str | None) -> Installation:
    """A RabbitMQ that this machine has already."""
    program = shutil.which("rabbitmq-server")
    folders = [Path("/usr/lib/rabbitmq/bin")]
    if program is not None:
        folders.append(Path(program).resolve().parent)
        folders += sorted(Path(program).resolve().parent.glob("../lib/rabbitmq/bin"))
    erl = shutil.which("erl")
    for scripts in folders:
        if not (scripts / "rabbitmq-server").is_file() or not (scripts / "rabbitmq-env").is_file():
            continue
        for home in _homes(scripts):
            found = home.name.removeprefix("rabbitmq_server-")
            if erl is None:
                raise Unavailable(f"RabbitMQ {found} is installed, and `erl` is not in PATH")
            if version is not None and not _is(found, version):
                raise Unavailable(f"RabbitMQ {found} is installed, {version} was asked for")
            bins = Path(erl).resolve().parent
            if not (bins / "epmd").exists():
                raise Unavailable(f"RabbitMQ {found} is installed, and `epmd` is not beside {erl}")
            chosen = Chosen("installed", "RabbitMQ", found, "broker", f"{scripts} has it")
            return Installation(chosen, scripts, bins, home)
    raise Unavailable("no rabbitmq-server in PATH; install it, for example with the system's package manager")


def _unpacked(version: str, strict: bool) -> Installation:
    """RabbitMQ from Debian's packages, in the user's cache."""
    reasons = []
    for suite in _suites(version):
        try:
            return _unpack(suite, version if strict else None)
        except Unavailable as reason:
            reasons.append(reason)
    raise Unavailable("; ".join(map(str, reasons)), excusable=all(reason.excusable for reason in reasons))


def _suites(version: str) -> list[str]:
    distribution, own, _ = debian.archive()
    if distribution == "debian":
        return list(SUITES[version])
    # Another distribution's archive has no Debian suites; what its own suite has must do, if it is what is wanted.
    return [own]


def _unpack(suite: str, version: str | None) -> Installation:
    distribution, _, source = debian.archive()

    def build(folder: Path, report: Report) -> None:
        root = debian.unpack(["rabbitmq-server"], suite, source, folder, report)
        report("making the programs run from here")
        erlang = root / "usr/lib/erlang"
        programs = [*erlang.glob("erts-*/bin/*"), *erlang.glob("bin/*"), *erlang.glob("lib/*/priv/bin/*")]
        debian.relocate(root, [program for program in programs if debian.is_elf(program)])
        for script in [*erlang.glob("erts-*/bin/*"), *erlang.glob("bin/*")]:
            if script.is_file() and not script.is_symlink() and not debian.is_elf(script):
                text = script.read_bytes()
                if text.startswith(b"#!") and b"ROOTDIR=/usr/lib/erlang" in text:
                    script.write_bytes(
                        text.replace(b"ROOTDIR=/usr/lib/erlang", b'ROOTDIR="' + os.fsencode(erlang) + b'"')
                    )

    name = f"rabbitmq/{distribution}-{suite}-{platform.machine()}"
    root = cached(name, build, title=f"RabbitMQ of {distribution} {suite}") / "root"
    scripts = root / "usr/lib/rabbitmq/bin"
    for home in _homes(scripts):
        found = home.name.removeprefix("rabbitmq_server-")
        if version is not None and not _is(found, version):
            raise Unavailable(
                f"{distribution} {suite} has RabbitMQ {found}, {version} was asked for",
                excusable=distribution != "debian",
            )
        why = f"unpacked packages of {distribution} {suite}"
        chosen = Chosen("recipe", "RabbitMQ", found, "broker", why)
        return Installation(chosen, scripts, root / "usr/lib/erlang/bin", home)
    raise Unavailable(f"the packages of {distribution} {suite} hold no RabbitMQ server")


def _homes(scripts: Path) -> list[Path]:
    beside = [*(scripts.parent / "lib").glob("rabbitmq_server-*"), *scripts.parent.parent.glob("rabbitmq_server-*")]
    return sorted(home.resolve() for home in beside if (home / "plugins").is_dir())


def _is(found: str, version: str) -> bool:
    return found == version or found.startswith(f"{version}.")
