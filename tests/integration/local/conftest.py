"""Brokers that these tests may kill, and their raw clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import confluent_kafka
import pika
import psutil
import pytest
from confluent_kafka.admin import AdminClient

TARGETS = ["rabbitmq", "rabbitmq:4.0", "rabbitmq:3.10", "kafka"]


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def marked(value: str) -> list[int]:
    """Processes of this machine whose environment or command line has the text."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if any(value in text for text in [*process.environ().values(), *process.cmdline()]):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


class Rabbit:
    """A queue, by pika."""

    def __init__(self, url: str) -> None:
        self.parts = urlsplit(url)
        self.queue = "ledger--all"

    def connect(self, user: str | None = None, password: str | None = None) -> pika.BlockingConnection:
        host, _, port = self.parts.netloc.rpartition("@")[2].split(",")[0].rpartition(":")
        tls = None
        if self.parts.scheme == "amqps":
            import ssl

            tls = pika.SSLOptions(ssl.create_default_context(cafile=parse_qs(self.parts.query)["tls_ca"][0]), host)
        who = pika.PlainCredentials(user or self.parts.username or "guest", password or self.parts.password or "guest")
        return pika.BlockingConnection(
            pika.ConnectionParameters(host, int(port), credentials=who, ssl_options=tls, socket_timeout=5)
        )

    def declare(self) -> None:
        with self.connect() as connection:
            arguments = {"x-queue-type": "quorum"}
            connection.channel().queue_declare(self.queue, durable=True, arguments=arguments)

    def written_down(self, data: Path) -> bool:
        """Whether a node that is killed now will know the queue again. Its name gets into the list of logs after half
        a second to a second; without that the queue comes back without its log. Versions that keep metadata in Mnesia
        write them at once, as a rule: node.log of one that did not said "Recovering 0 queues"."""

        def in_any(files: Iterable[Path]) -> bool:
            return any(self.queue.encode() in file.read_bytes() for file in files)

        mnesia = [*data.rglob("LATEST.LOG"), *data.rglob("rabbit_durable_queue.DC?")]
        return in_any(data.rglob("names.dets")) and (not mnesia or in_any(mnesia))

    def send(self, count: int) -> int:
        with self.connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for number in range(count):
                channel.basic_publish("", self.queue, str(number).encode(), pika.BasicProperties(delivery_mode=2))
        return count

    def receive(self, count: int, seconds: float = 30) -> set[str]:
        got: set[str] = set()
        with self.connect() as connection:
            channel = connection.channel()
            for method, _, body in channel.consume(self.queue, inactivity_timeout=seconds):
                if method is None:
                    break
                got.add(body.decode())
                channel.basic_ack(method.delivery_tag)
                if len(got) == count:
                    break
        return got

    def answers(self, seconds: float) -> bool:
        import socket

        host, _, port = self.parts.netloc.rpartition("@")[2].split(",")[0].rpartition(":")
        try:
            with socket.create_connection((host, int(port)), seconds) as connection:
                connection.settimeout(seconds)
                connection.sendall(b"AMQP\0\0\x09\x01")
                return connection.recv(1) == b"\x01"
        except OSError:
            return False


class Kafka:
    """A topic, by confluent-kafka."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        self.topic = "ledger"
        self.config: dict[str, object] = {"bootstrap.servers": parts.netloc.rpartition("@")[2], "log_level": 0}
        if "tls_ca" in query:
            self.config |= {
                "security.protocol": "SASL_SSL",
                "ssl.ca.location": query["tls_ca"][0],
                "sasl.mechanism": query["sasl_mechanism"][0],
                "sasl.username": parts.username,
                "sasl.password": parts.password,
            }

    def declare(self) -> None:
        topic = confluent_kafka.admin.NewTopic(self.topic, 1, -1)
        with AdminClient(self.config) as admin:
            for future in admin.create_topics([topic]).values():
                future.result(20)

    def written_down(self, data: Path) -> bool:
        """A topic that the node has confirmed is in its log."""
        return True

    def send(self, count: int) -> int:
        confirmed: list[bool] = []
        producer = confluent_kafka.Producer({**self.config, "enable.idempotence": True})
        for number in range(count):
            producer.produce(
                self.topic, str(number).encode(), on_delivery=lambda error, _: confirmed.append(error is None)
            )
        producer.flush(30)
        return sum(confirmed)

    def receive(self, count: int, seconds: float = 30) -> set[str]:
        consumer = confluent_kafka.Consumer({**self.config, "group.id": "all", "auto.offset.reset": "earliest"})
        consumer.subscribe([self.topic])
        got: set[str] = set()
        deadline = time.monotonic() + seconds
        while len(got) < count and time.monotonic() < deadline:
            got |= {message.value().decode() for message in consumer.consume(100, 0.5) if message.error() is None}
        consumer.close()
        return got

    def answers(self, seconds: float) -> bool:
        try:
            with AdminClient(self.config) as admin:
                admin.list_topics(timeout=seconds)
        except confluent_kafka.KafkaException:
            return False
        return True


def client(target: str, url: str) -> Rabbit | Kafka:
    return Rabbit(url) if target.startswith("rabbitmq") else Kafka(url)


@pytest.fixture
def make_client():
    return client
