"""Settings of `kafka://` URLs, and the client configurations made of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from brokerkit.errors import ConfigurationError, GuaranteeNotOffered
from brokerkit.guarantees import Guarantee
from brokerkit.plugins import Settings, Url

log = logging.getLogger("brokerkit.kafka")

_STATISTICS = {"statistics.interval.ms": 1000}
"""They alone tell of a client that has no broker left: see `outage.Forgotten`."""

_OURS = {
    "bootstrap.servers": "write the hosts into the URL",
    "group.id": "name the subscription, or attach with native={'group': …}",
    "enable.auto.offset.store": "brokerkit stores no offset that is not settled",
    "auto.offset.reset": "declare a subscription with start=; an offset that is gone is an error, never a silent skip",
    "transactional.id": "transactions(instance=…) names it",
    "group.protocol": "use the option group_protocol",
    "partition.assignment.strategy": "use the option assignor",
}


_CONSUMER_ONLY = frozenset(
    [
        "auto.commit.interval.ms",
        "check.crcs",
        "coordinator.query.interval.ms",
        "enable.auto.commit",
        "enable.partition.eof",
        "fetch.error.backoff.ms",
        "fetch.max.bytes",
        "fetch.message.max.bytes",
        "fetch.min.bytes",
        "fetch.queue.backoff.ms",
        "fetch.wait.max.ms",
        "group.instance.id",
        "group.protocol.type",
        "group.remote.assignor",
        "heartbeat.interval.ms",
        "isolation.level",
        "max.partition.fetch.bytes",
        "max.poll.interval.ms",
        "queued.max.messages.kbytes",
        "queued.min.messages",
        "session.timeout.ms",
    ]
)
_PRODUCER_ONLY = frozenset(
    [
        "acks",
        "batch.num.messages",
        "batch.size",
        "compression.codec",
        "compression.level",
        "compression.type",
        "delivery.timeout.ms",
        "delivery.report.only.error",
        "enable.gapless.guarantee",
        "enable.idempotence",
        "linger.ms",
        "message.send.max.retries",
        "message.timeout.ms",
        "partitioner",
        "queue.buffering.backpressure.threshold",
        "queue.buffering.max.kbytes",
        "queue.buffering.max.messages",
        "queue.buffering.max.ms",
        "queuing.strategy",
        "request.required.acks",
        "request.timeout.ms",
        "retries",
        "sticky.partitioning.linger.ms",
        "transaction.timeout.ms",
    ]
)


class KafkaSettings(Settings):
    """`partitions`, `replication` and `min_insync` are for topics that `declare` creates; replication is three
    where the cluster has as many nodes, and then two replicas must be in sync.

    - `group_protocol`: `classic`, or `consumer` for the broker-side protocol of KIP-848.
    - `assignor`: of the classic protocol. The members of one group must agree.
    - `session_timeout`: seconds until a member that died gives its partitions up; classic protocol only.
    - `revoke_timeout`: seconds that a rebalance waits for deliveries in hand.
    - `transaction_timeout`: seconds after which the broker aborts a transaction that is still open. Until then what a
      dead worker left open keeps readers waiting; keep it well above a node's restart.
    - `tls`, `tls_ca`, `tls_cert`, `tls_key`: encryption; any of the paths turns it on.
    - `sasl_mechanism`: with user and password in the URL; PLAIN unless said otherwise.
    """

    partitions: int = Field(4, ge=1)
    replication: int | None = Field(None, ge=1)
    min_insync: int | None = Field(None, ge=1)
    group_protocol: Literal["classic", "consumer"] = "classic"
    assignor: Literal["cooperative-sticky", "range", "roundrobin"] = "cooperative-sticky"
    session_timeout: float = Field(10.0, gt=0)
    revoke_timeout: float = Field(5.0, gt=0)
    transaction_timeout: float = Field(60.0, ge=1)
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None


class Config:
    """The configurations of the clients that one URL stands for. Raises ConfigurationError for contradictions."""

    def __init__(self, url: Url, settings: KafkaSettings) -> None:
        self.settings = settings
        self.client = dict(settings.client)
        self._check()
        hosts = [f"[{host}]" if ":" in host else host for host, _ in url.hosts]
        ports = [port or 9092 for _, port in url.hosts]
        if not hosts:
            raise ConfigurationError("a Kafka URL names at least one host: kafka://localhost:9092")
        if url.path not in ("", "/"):
            raise ConfigurationError(f"a Kafka URL has no path, got {url.path!r}: topics are named in the calls")
        self._common: dict[str, Any] = {
            "bootstrap.servers": ",".join(f"{host}:{port}" for host, port in zip(hosts, ports, strict=True)),
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 500,
            "logger": log,
            "log_level": 2,  # its errors reach the callbacks, which tell an outage once
            **self._security(url),
        }

    def acks(self) -> str:
        """`all`, `0` or a number of replicas, as configured for a producer that asks for confirms."""
        value = self.client.get("acks", self.client.get("request.required.acks", "all"))
        return "all" if value == "-1" else value

    def idempotent(self) -> bool:
        return self.client.get("enable.idempotence", "true") == "true"

    def offered(self) -> frozenset[Guarantee]:
        """Guarantees that a producer can ask for with these client options."""
        offered = {Guarantee.AT_MOST_ONCE}
        if self.acks() != "0":
            offered.add(Guarantee.AT_LEAST_ONCE)
        if self.acks() == "all" and self.idempotent():
            offered.add(Guarantee.EXACTLY_ONCE)
        return frozenset(offered)

    def producer(self, guarantee: Guarantee, delivery_timeout: float) -> dict[str, Any]:
        """At most once asks for no acknowledgement, never retries, and drops what it could not write within a second;
        the others are idempotent, acks=all."""
        if guarantee not in self.offered():
            raise GuaranteeNotOffered(
                f"{guarantee} needs acks=all and enable.idempotence=true, and at_least_once needs acks other than 0: "
                "take client.acks and client.enable.idempotence out of the URL, or ask for less"
            )
        if guarantee is Guarantee.AT_MOST_ONCE:
            promise: dict[str, Any] = {
                "acks": "0",
                "enable.idempotence": False,
                "message.send.max.retries": 0,
                "message.timeout.ms": min(1000, max(1, int(delivery_timeout * 1000))),
                "delivery.report.only.error": True,
            }
        else:
            promise = {
                "acks": "all",
                "enable.idempotence": True,
                "message.timeout.ms": max(1, int(delivery_timeout * 1000)),
            }
        defaults = {
            **_STATISTICS,
            "partitioner": "murmur2_random",
            "linger.ms": 5,
            "topic.metadata.propagation.max.ms": 5000,
        }
        chosen = self._without(_CONSUMER_ONLY)
        if guarantee is Guarantee.AT_MOST_ONCE:
            chosen = {name: value for name, value in chosen.items() if name not in promise}
        return {**self._common, **defaults, **promise, **chosen}

    def transactions(self) -> bool:
        """Whether these client options leave transactions their promise."""
        committed = self.client.get("isolation.level", "read_committed") == "read_committed"
        return committed and Guarantee.EXACTLY_ONCE in self.offered()

    def transactional(self, id: str) -> dict[str, Any]:
        """Of a producer of transactions."""
        longest = self.settings.transaction_timeout
        return {
            "transaction.timeout.ms": int(longest * 1000),
            "socket.timeout.ms": min(10_000, int(longest * 1000)),
            **self.producer(Guarantee.EXACTLY_ONCE, min(30.0, 0.9 * longest)),
            "delivery.report.only.error": True,  # that all is stored, the commit tells
            "transactional.id": id,
        }

    def consumer(self, group: str, prefetch_bytes: int) -> dict[str, Any]:
        settings = self.settings
        config: dict[str, Any] = {
            **self._common,
            **_STATISTICS,
            "group.protocol": settings.group_protocol,
            "fetch.wait.max.ms": 100,
            "fetch.error.backoff.ms": 100,
            "topic.metadata.refresh.interval.ms": 30_000,
            "queued.max.messages.kbytes": max(1024, min(prefetch_bytes // 1024, 65_536)),
            "isolation.level": "read_committed",
            "socket.timeout.ms": 10_000,
        }
        if settings.group_protocol == "classic":
            session = int(settings.session_timeout * 1000)
            config["partition.assignment.strategy"] = settings.assignor
            config["session.timeout.ms"] = session
            config["heartbeat.interval.ms"] = max(100, min(3000, session // 4))
        return {
            **config,
            **self._without(_PRODUCER_ONLY),
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
        }

    def admin(self) -> dict[str, Any]:
        others = _CONSUMER_ONLY | _PRODUCER_ONLY | _STATISTICS.keys()  # nothing polls it for statistics
        return {**self._common, "socket.timeout.ms": 10_000, **self._without(others)}

    def _without(self, names: frozenset[str]) -> dict[str, str]:
        """The URL's client options but for those that this kind of client would warn about."""
        return {name: value for name, value in self.client.items() if name not in names}

    def _check(self) -> None:
        for name, instead in _OURS.items():
            if name in self.client:
                raise ConfigurationError(f"client.{name} cannot be set: {instead}")
        if self.client.get("enable.auto.commit", "false") != "false":
            raise ConfigurationError(
                "client.enable.auto.commit=true commits what was not handled and so loses messages: leave it out"
            )
        if self.acks() != "all" and self.client.get("enable.idempotence") == "true":
            raise ConfigurationError("client.enable.idempotence=true needs acks=all: leave client.acks out")
        if self.acks() != "all" and self.idempotent():
            self.client["enable.idempotence"] = "false"

    def _security(self, url: Url) -> Mapping[str, Any]:
        settings = self.settings
        config: dict[str, Any] = {}
        tls = settings.tls or any((settings.tls_ca, settings.tls_cert, settings.tls_key))
        if settings.tls_ca:
            config["ssl.ca.location"] = settings.tls_ca
        if settings.tls_cert:
            config["ssl.certificate.location"] = settings.tls_cert
        if settings.tls_key:
            config["ssl.key.location"] = settings.tls_key
        sasl = url.username is not None or settings.sasl_mechanism is not None
        if sasl:
            if url.username is None or url.password is None:
                raise ConfigurationError("SASL needs user and password in the URL: kafka://user:password@host:9092")
            config["sasl.mechanism"] = settings.sasl_mechanism or "PLAIN"
            config["sasl.username"] = url.username
            config["sasl.password"] = url.password
        if tls or sasl:
            config["security.protocol"] = ("SASL_" if sasl else "") + ("SSL" if tls else "PLAINTEXT")
        return config
