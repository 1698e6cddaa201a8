"""Settings of `kafka://` URLs, and the client configurations made of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from brokerkit.errors import ConfigurationError, GuaranteeNotOffered
from brokerkit.guarantees import Guarantee
from brokerkit.plugins import Url
from brokerkit.tls import TlsSettings

log = logging.getLogger("brokerkit.kafka")

_STATISTICS = {"statistics.interval.ms": 1000}
"""They alone tell of a client that has no broker left: see `outage.Forgotten`."""

RETRY_BACKOFF = 0.5
"""Seconds that a transactional producer waits before it asks again, less a fifth at most."""

_OURS = {
    "bootstrap.servers": "write the hosts into the URL",
    "group.id": "name the subscription, or attach with native={'group': …}",
    "enable.auto.offset.store": "brokerkit stores no offset that is not settled",
    "auto.offset.reset": "declare a subscription with start=; an offset that is gone is an error, never a silent skip",
    "transactional.id": "transactions(instance=…) names it",
    "group.protocol": "use the option group_protocol",
    "partition.assignment.strategy": "use the option assignor",
}


class KafkaSettings(TlsSettings):
    """`partitions`, `replication` and `min_insync` are for topics that `declare` creates; replication is three
    where the cluster has as many nodes, and then two replicas must be in sync.

    - `group_protocol`: `classic`, or `consumer` for the broker-side protocol of KIP-848.
    - `assignor`: of the classic protocol. The members of one group must agree.
    - `session_timeout`: seconds until a member that died gives its partitions up; classic protocol only.
    - `revoke_timeout`: seconds that a rebalance waits for deliveries in hand.
    - `transaction_timeout`: seconds after which the broker aborts a transaction that is still open. Until then what a
      dead worker left open keeps readers waiting; keep it well above a node's restart.
    - Any of the paths for TLS turns it on.
    - `sasl_mechanism`: with user and password in the URL; PLAIN unless said otherwise.
    """

    partitions: PositiveInt = 4
    replication: PositiveInt | None = None
    min_insync: PositiveInt | None = None
    group_protocol: Literal["classic", "consumer"] = "classic"
    assignor: Literal["cooperative-sticky", "range", "roundrobin"] = "cooperative-sticky"
    session_timeout: PositiveFloat = 10.0
    revoke_timeout: PositiveFloat = 5.0
    transaction_timeout: float = Field(60.0, ge=1)
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None


class Native(BaseModel):
    """`native=`: of topics that are made, as in KafkaSettings and, in `config`, the topic's settings in Kafka's own
    names; `group` and `topic` are those that exist already and are taken as they are."""

    model_config = ConfigDict(extra="forbid", strict=True)

    partitions: PositiveInt | None = None
    replication: PositiveInt | None = None
    min_insync: PositiveInt | None = None
    config: Mapping[str, Any] = {}
    group: str | None = None
    topic: str | None = None


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
            # Errors reach the callbacks, which tell an outage once. Not logged either: options of the URL that are
            # for another kind of client, which librdkafka ignores with a warning.
            "log_level": 2,
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
        milliseconds = max(1, int(delivery_timeout * 1000))
        config = {
            **self._common,
            **_STATISTICS,
            "partitioner": "murmur2_random",
            "linger.ms": 5,
            "topic.metadata.propagation.max.ms": 5000,
            "message.timeout.ms": milliseconds,
        }
        if guarantee is not Guarantee.AT_MOST_ONCE:
            return {**config, "acks": "all", "enable.idempotence": True, **self.client}
        return {
            **config,
            **self.client,
            "acks": "0",
            "enable.idempotence": False,
            "message.send.max.retries": 0,
            "message.timeout.ms": min(1000, milliseconds),
            "delivery.report.only.error": True,
        }

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
            "retry.backoff.ms": int(RETRY_BACKOFF * 1000),
            "retry.backoff.max.ms": 1000,
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
            "fetch.queue.backoff.ms": 10,  # of 1000: a full queue is drained in far less, and then stood empty
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
            **self.client,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
        }

    def admin(self) -> dict[str, Any]:
        """Of a client that produces nothing, and so must not ask for a producer's id."""
        idempotence = {"enable.idempotence", "enable.gapless.guarantee"}
        options = {name: value for name, value in self.client.items() if name not in idempotence}
        return {**self._common, "socket.timeout.ms": 10_000, **options}

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
        files = {
            "ssl.ca.location": settings.tls_ca,
            "ssl.certificate.location": settings.tls_cert,
            "ssl.key.location": settings.tls_key,
        }
        config: dict[str, Any] = {name: path for name, path in files.items() if path}
        tls = settings.tls or bool(config)
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
