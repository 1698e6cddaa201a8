"""What is measured on each broker, and against whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from benchmarks.measure import PEERS_PYTHON, Call, Side, Work
from benchmarks.ours import SUBSCRIPTION

SIZE = 1024
SQLITE_BATCH = 100
COMMITS = (1.0, 0.1, 0.01, 0.03, 0.3, 3.0)
"""Seconds between two commits of a copy."""
HEADERS = {"kind": "bench"}


@dataclass(frozen=True, slots=True)
class Broker:
    """A started broker: brokerkit's URL, and a folder for sides that need files of their own."""

    name: str
    url: str
    folder: Path

    @property
    def amqp(self) -> str:
        """The URL as other AMQP clients read it."""
        parts = urlsplit(self.url)
        return f"amqp://{parts.netloc}/{parts.path.strip('/') or '%2F'}"

    @property
    def servers(self) -> str:
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def emulator(self) -> str:
        """host:port of the emulator behind a Pub/Sub URL."""
        return parse_qs(urlsplit(self.url).query)["emulator_host"][0]


def queue_of(topic: str) -> str:
    """The native queue of the benchmarks' subscription."""
    return f"{topic}--{SUBSCRIPTION}"


def rabbitmq(broker: Broker, scale: float) -> list[Work]:
    """Quorum queues."""
    many, some, few = (_scaled(count, scale) for count in (50_000, 8_000, 3_000))
    url, amqp = broker.url, broker.amqp

    def fill(count: int) -> Callable[[str], Call]:
        return lambda topic: Call("raw_rabbitmq", "send", (amqp, queue_of(topic), count, SIZE))

    def raw(same_wire: bool) -> Callable[[str], Call]:
        more = {"same_wire": same_wire, "exchange": ""}
        return lambda topic: Call("raw_rabbitmq", "send", (amqp, queue_of(topic), many, SIZE), more)

    send = [
        _ours_send(url, many),
        Side("raw", raw(True)),
        Side("bare", raw(False)),
        Side("kombu", lambda topic: Call("peer_kombu", "send", (amqp, queue_of(topic), few, SIZE))),
        Side("aio-pika", lambda topic: Call("peer_aio_pika", "send", (amqp, queue_of(topic), some, SIZE))),
        Side("faststream", lambda topic: Call("peer_faststream", "rabbit_send", (amqp, queue_of(topic), some, SIZE))),
    ]
    receive = [
        _ours_receive(url, many, fill(many)),
        Side(
            "raw",
            lambda topic: Call("raw_rabbitmq", "receive", (amqp, queue_of(topic), many), {"same_wire": True}),
            fill(many),
        ),
        Side(
            "bare",
            lambda topic: Call("raw_rabbitmq", "receive", (amqp, queue_of(topic), many), {"same_wire": False}),
            fill(many),
        ),
        Side("kombu", lambda topic: Call("peer_kombu", "receive", (amqp, queue_of(topic), some)), fill(some)),
        Side("aio-pika", lambda topic: Call("peer_aio_pika", "receive", (amqp, queue_of(topic), some)), fill(some)),
        Side(
            "faststream",
            lambda topic: Call("peer_faststream", "rabbit_receive", (amqp, queue_of(topic), some)),
            fill(some),
        ),
    ]
    return [Work("rabbitmq: send, confirmed", url, send), Work("rabbitmq: receive and ack", url, receive)]


def kafka(broker: Broker, scale: float) -> list[Work]:
    many, some, few = (_scaled(count, scale) for count in (200_000, 20_000, 6_000))
    url, servers = broker.url, broker.servers

    def fill(count: int) -> Callable[[str], Call]:
        return lambda topic: Call("raw_kafka", "send", (servers, topic, count, SIZE))

    def raw(function: str, same_wire: bool) -> Callable[[str], Call]:
        size = (SIZE,) if function == "send" else ()
        return lambda topic: Call("raw_kafka", function, (servers, topic, many, *size), {"same_wire": same_wire})

    send = [
        _ours_send(url, many, HEADERS),
        Side("raw", raw("send", True)),
        Side("bare", raw("send", False)),
        Side("faststream", lambda topic: Call("peer_faststream", "kafka_send", (servers, topic, some, SIZE))),
    ]
    receive = [
        _ours_receive(url, many, fill(many), prefetch=10_000, batch=1000),
        Side("raw", raw("receive", True), fill(many)),
        Side("bare", raw("receive", False), fill(many)),
        Side("faststream", lambda topic: Call("peer_faststream", "kafka_receive", (servers, topic, few)), fill(few)),
    ]
    return [
        Work("kafka: send, confirmed", url, send),
        Work("kafka: receive and ack", url, receive),
        *(_copying(broker, seconds, scale, fill) for seconds in COMMITS),
    ]


def _copying(broker: Broker, seconds: float, scale: float, fill: Callable[[int], Callable[[str], Call]]) -> Work:
    """Exactly once from topic to topic, beside the same at least once, the client's own transactional loop, and Quix
    Streams. Each copies for a few seconds and for more than one commit."""
    url, servers = broker.url, broker.servers
    many, some = (_scaled(count * max(1.0, 2 * seconds), scale) for count in (150_000, 15_000))
    sides = [
        Side("brokerkit", lambda topic: Call("copying", "exactly_once", (url, topic, many, seconds)), fill(many)),
        Side("raw", lambda topic: Call("copying", "raw", (url, servers, topic, many, seconds)), fill(many)),
        Side("at least once", lambda topic: Call("copying", "at_least_once", (url, topic, many, seconds)), fill(many)),
        Side(
            "quixstreams",
            lambda topic: Call("peer_quixstreams", "copy", (servers, topic, some, seconds), python=str(PEERS_PYTHON)),
            fill(some),
        ),
    ]
    return Work(f"kafka: copy exactly once, commits each {seconds:g} s", url, sides, at=seconds)


def sqlite(broker: Broker, scale: float) -> list[Work]:
    """In batches of 100, each commit FULL. No peer offers a file as a queue with confirmed commits."""
    many = _scaled(50_000, scale)
    url = broker.url

    def file(topic: str) -> str:
        return str(broker.folder / f"raw-{topic}.db")

    def fill(topic: str) -> Call:
        return Call("raw_sqlite", "send", (file(topic), many, SIZE, SQLITE_BATCH))

    def fill_ours(topic: str) -> Call:
        more = {"batch": SQLITE_BATCH, "headers": HEADERS}
        return Call("ours", "send", (url, topic, many, SIZE), more)

    send = [Side("brokerkit", fill_ours), Side("raw", fill)]
    receive = [
        _ours_receive(url, many, fill_ours, prefetch=2 * SQLITE_BATCH, batch=SQLITE_BATCH),
        Side("raw", lambda topic: Call("raw_sqlite", "receive", (file(topic), many, SQLITE_BATCH)), fill),
    ]
    return [Work("sqlite: send, committed", url, send), Work("sqlite: receive and ack", url, receive)]


def sqs(broker: Broker, scale: float) -> list[Work]:
    """ElasticMQ; the naive way is one message a call."""
    many, few = (_scaled(count, scale) for count in (12_000, 1_000))
    url = broker.url

    def fill(count: int) -> Callable[[str], Call]:
        return lambda topic: Call("raw_sqs", "send", (url, queue_of(topic), count, SIZE))

    def raw(function: str, count: int, **more: bool) -> Callable[[str], Call]:
        size = (SIZE,) if function == "send" else ()
        return lambda topic: Call("raw_sqs", function, (url, queue_of(topic), count, *size), more)

    send = [
        _ours_send(url, many),
        Side("raw", raw("send", many)),
        Side("bare", raw("send", many, same_wire=False)),
        Side("one by one", raw("send", few, one_by_one=True)),
    ]
    receive = [
        _ours_receive(url, many, fill(many)),
        Side("raw", raw("receive", many), fill(many)),
        Side("bare", raw("receive", many, same_wire=False), fill(many)),
        Side("one by one", raw("receive", few, one_by_one=True), fill(few)),
    ]
    return [
        Work("sqs: send, confirmed", url, send, warm_ups=1),
        Work("sqs: receive and ack", url, receive, warm_ups=1),
    ]


def pubsub(broker: Broker, scale: float) -> list[Work]:
    """On the emulator that is here: the ratios are the clients', the rates are nobody's service."""
    many, few = _scaled(50_000, scale), max(100, round(300 * scale))
    url, address = broker.url, broker.emulator
    project = f"projects/{urlsplit(url).netloc}"

    def path(topic: str) -> str:
        return f"{project}/topics/{topic}"

    def subscription(topic: str) -> str:
        return f"{project}/subscriptions/{queue_of(topic)}"

    def fill(count: int) -> Callable[[str], Call]:
        return lambda topic: Call("raw_pubsub", "send", (address, path(topic), count, SIZE))

    def raw(same_wire: bool) -> Callable[[str], Call]:
        return lambda topic: Call("raw_pubsub", "send", (address, path(topic), many, SIZE), {"same_wire": same_wire})

    def pull(same_wire: bool) -> Callable[[str], Call]:
        more = {"same_wire": same_wire}
        return lambda topic: Call("raw_pubsub", "receive", (address, subscription(topic), many), more)

    send = [_ours_send(url, many), Side("raw", raw(True)), Side("bare", raw(False))]
    receive = [
        _ours_receive(url, many, fill(many), prefetch=5000, batch=1000),
        Side("raw", pull(True), fill(many)),
        Side("bare", pull(False), fill(many)),
        Side(
            "streaming pull",
            lambda topic: Call("raw_pubsub", "streaming", (address, subscription(topic), few)),
            fill(few),
        ),
    ]
    return [
        Work("pubsub: send, confirmed", url, send, warm_ups=1),
        Work("pubsub: receive and ack", url, receive, warm_ups=1),
    ]


WORKS: Mapping[str, Callable[[Broker, float], list[Work]]] = {
    "sqlite": sqlite,
    "rabbitmq": rabbitmq,
    "kafka": kafka,
    "sqs": sqs,
    "pubsub": pubsub,
}


def costs(broker: Broker, producers: Sequence[str], consumers: Sequence[str], scale: float) -> list[Work]:
    """What each guarantee that is offered costs: the same sends and receives under each, as sides of one work."""
    counts = {"sqlite": 30_000, "rabbitmq": 20_000, "kafka": 100_000, "sqs": 8_000, "pubsub": 20_000}
    count = _scaled(counts[broker.name], scale)
    batch = SQLITE_BATCH if broker.name == "sqlite" else 0

    def sending(guarantee: str) -> Side:
        more = {"guarantee": guarantee, "batch": batch}
        return Side(guarantee, lambda topic: Call("ours", "send", (broker.url, topic, count, SIZE), more))

    def receiving(guarantee: str) -> Side:
        more = {"guarantee": guarantee}
        return Side(
            guarantee,
            lambda topic: Call("ours", "receive", (broker.url, topic, count), more),
            lambda topic: Call("ours", "send", (broker.url, topic, count, SIZE), {"batch": batch}),
        )

    return [
        Work(f"{broker.name}: what a producer's guarantee costs", broker.url, [sending(name) for name in producers]),
        Work(
            f"{broker.name}: what a consumer's guarantee costs",
            broker.url,
            [receiving(name) for name in consumers if name != "exactly_once"],
        ),
    ]


def latencies(broker: Broker, seconds: float) -> Work:
    """From the scheduled time of the send to the hand-over, at 500 messages a second."""
    raw = {
        "rabbitmq": lambda topic: Call("latency", "raw_rabbitmq", (broker.amqp, queue_of(topic), 500, seconds, SIZE)),
        "kafka": lambda topic: Call("latency", "raw_kafka", (broker.servers, topic, 500, seconds, SIZE)),
    }
    sides = [Side("brokerkit", lambda topic: Call("latency", "ours", (broker.url, topic, 500, seconds, SIZE)))]
    if broker.name in raw:
        sides.append(Side("raw", raw[broker.name]))
    return Work(f"{broker.name}: latency at 500/s", broker.url, sides)


def _ours_send(url: str, count: int, headers: Mapping[str, str] | None = None) -> Side:
    return Side("brokerkit", lambda topic: Call("ours", "send", (url, topic, count, SIZE), {"headers": headers}))


def _ours_receive(url: str, count: int, fill: Callable[[str], Call], *, prefetch: int = 500, batch: int = 100) -> Side:
    more = {"prefetch": prefetch, "batch": batch}
    return Side("brokerkit", lambda topic: Call("ours", "receive", (url, topic, count), more), fill)


def _scaled(count: float, scale: float) -> int:
    """A multiple of 1,000, so that no batch is cut."""
    return max(1000, round(count * scale / 1000) * 1000)
