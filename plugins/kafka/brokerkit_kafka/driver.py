"""Kafka: topics, consumer groups named `topic--subscription`, and what they promise as configured.

The driver's parts: settings.py (what the URL says, as options of the clients), claims.py, admin.py (topics), groups.py
(where subscriptions go on, and their settings), sender.py, receiver.py with lane.py (one partition) and incoming.py
(one message), transactor.py with transactional.py (its producer), outage.py (what a client tells of its connection),
backlog.py, errors.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import confluent_kafka
from confluent_kafka.admin import TopicDescription  # type: ignore[attr-defined]

from brokerkit.declared import check_same
from brokerkit.driver import (
    Capabilities,
    Driver,
    Outcomes,
    Receiver,
    ReceiverEvents,
    Sender,
    SenderEvents,
    Settled,
    Subscription,
    Traits,
    Transactor,
)
from brokerkit.errors import BrokerkitError, ConfigurationError, NotFound
from brokerkit.guarantees import Claims, Guarantee
from brokerkit.plugins import Url, checked
from brokerkit_kafka.admin import Admin
from brokerkit_kafka.backlog import counted
from brokerkit_kafka.claims import Facts, claims, weakest
from brokerkit_kafka.groups import Groups, settings_of
from brokerkit_kafka.receiver import KafkaReceiver
from brokerkit_kafka.sender import KafkaSender
from brokerkit_kafka.settings import Config, KafkaSettings, Native
from brokerkit_kafka.transactional import TransactionalProducer
from brokerkit_kafka.transactor import KafkaTransactor


class _Reading(NamedTuple):
    """What a member of a group has to know."""

    group: str
    topics: Mapping[str, str]
    """Name to topic id."""
    known: Mapping[str, Any]
    """The subscription's settings."""
    apart: bool
    """Whether redeliveries go through a retry topic."""


class KafkaDriver(Driver):
    blocking = False

    def __init__(self, url: Url, settings: KafkaSettings) -> None:
        self._config = Config(url, settings)
        self._settings = settings
        self._admin = Admin(self._config.admin())
        self._groups = Groups(self._admin, self._config)
        self._facts: dict[str, Facts] = {}
        largest = int(self._config.client.get("message.max.bytes", "1000000"))
        self.capabilities = Capabilities(
            producer_guarantees=self._config.offered(),
            consumer_guarantees=frozenset({Guarantee.AT_MOST_ONCE, Guarantee.AT_LEAST_ONCE}),
            transactions=self._config.transactions(),
            positions=True,
            max_body_bytes=max(1, largest - 2048),
        )

    # ------------------------------------------------------------ what it promises

    def claims(self, producer: Guarantee, consumer: Guarantee) -> Claims:
        """From the client's options and the weakest topic that this driver has declared or opened; before that,
        from what `declare` would create here."""
        facts = weakest(list(self._facts.values()) or [self._planned()])
        return claims(self._config, facts, self.capabilities.max_body_bytes or 0, producer, consumer)

    def describe(self) -> Mapping[str, str]:
        cluster = self._admin.cluster()
        settings = self._settings
        return {
            "product": "Apache Kafka",
            "cluster": str(cluster.cluster_id),
            "nodes": str(len(cluster.nodes)),
            "client": f"confluent-kafka {confluent_kafka.__version__}, librdkafka {confluent_kafka.libversion()[0]}",
            "acks": self._config.acks(),
            "idempotence": str(self._config.idempotent()).lower(),
            "group_protocol": settings.group_protocol,
            "assignor": settings.assignor if settings.group_protocol == "classic" else "broker-side",
            "session_timeout": str(settings.session_timeout),
        }

    # ------------------------------------------------------------ declaring

    def declare(self, topic: str, subscriptions: Sequence[Subscription], native: Mapping[str, Any]) -> None:
        wanted = _native(native)
        found = self._made(topic, wanted)
        facts = self._look(found)
        there = {
            "partitions": len(found.partitions),
            "replication": facts.replication,
            "min_insync": facts.min_insync,
        }
        asked = self._settings.model_dump(exclude_unset=True) | wanted.model_dump(exclude_none=True)
        check_same(f"topic {topic!r}", {name: asked.get(name) for name in there}, there)
        for subscription in subscriptions:
            group = _group(topic, subscription)
            if subscription.dead_letter is not None:
                buried = self._made(subscription.dead_letter, Native())
                self._groups.begin(f"{buried.name}--dead", buried, Subscription("dead", start="earliest"))
            self._groups.begin(group, found, subscription)
            if subscription.retry == "topic":
                alike = wanted.model_copy(update={"partitions": len(found.partitions)})
                again = self._made(retry_topic(topic, subscription.name), alike)
                self._groups.begin(group, again, Subscription(subscription.name, start="earliest"))

    def _made(self, topic: str, native: Native) -> TopicDescription:
        """The topic, made where it is missing, once all its partitions have leaders."""
        try:
            self._admin.topic(topic)
        except NotFound:
            plan = self._plan(len(self._admin.cluster().nodes), native)
            self._admin.create(topic, native.partitions or self._settings.partitions, plan, native.config)
        found = self._admin.ready(topic)
        self._look(found)
        return found

    def _plan(self, nodes: int, native: Native) -> Facts:
        replication = native.replication or self._settings.replication or min(3, nodes)
        return Facts(replication, native.min_insync or self._settings.min_insync or (2 if replication >= 3 else 1))

    def _planned(self) -> Facts:
        try:
            nodes = self._admin.cluster(timeout=5.0).nodes
        except BrokerkitError:
            return self._plan(1, Native())  # nothing better is known: the weakest claim
        plan = self._plan(len(nodes), Native())
        with suppress(BrokerkitError):  # not everybody may read a node's settings
            return replace(plan, retention_seconds=self._admin.retention(nodes[0].id, 5.0))
        return plan

    def _look(self, topic: TopicDescription, timeout: float = 10.0) -> Facts:
        """What the claims need to know of a topic; remembered, since none of it changes by itself."""
        if topic.name not in self._facts:
            self._facts[topic.name] = self._admin.facts(topic, timeout)
        return self._facts[topic.name]

    def delete(self, topic: str, subscription: str | None) -> None:
        if subscription is not None:
            self._groups.delete(f"{topic}--{subscription}")
            self._admin.delete(retry_topic(topic, subscription))
            return
        for group in self._groups.named(f"{topic}--"):
            self._groups.delete(group)
        for name in self._admin.names():
            if name.startswith(f"{topic}--") and name.endswith("--retry"):
                self._admin.delete(name)
        self._admin.delete(topic)
        self._facts.pop(topic, None)

    def depth(self, topic: str, subscription: str) -> int:
        """The retry topic included. Where little is left, messages are counted; else transaction markers, aborted
        records and holes left by compaction count as messages."""
        group = f"{topic}--{subscription}"
        found = self._admin.topic(topic)
        committed = self._groups.committed(group, found)
        if all(place.offset < 0 for place in committed.values()):
            raise NotFound(f"subscription {subscription!r} of {topic!r} does not exist; declare it first")
        gaps = self._groups.behind(found, committed)
        with suppress(NotFound):
            again = self._admin.topic(retry_topic(topic, subscription))
            gaps |= self._groups.behind(again, self._groups.committed(group, again))
        return counted(self._config.consumer(group, 0), gaps)

    # ------------------------------------------------------------ sessions

    def sender(
        self,
        topic: str,
        guarantee: Guarantee,
        outcomes: Outcomes,
        events: SenderEvents,
        *,
        subscription: str | None = None,
        native: Mapping[str, Any] | None = None,
        delivery_timeout: float = 30.0,
        timeout: float = 10.0,
    ) -> Sender:
        """With `subscription`, sends to its retry topic; messages wait there until their `brokerkit-due` header."""
        config = self._config.producer(guarantee, delivery_timeout)
        topic = _native(native or {}).topic or topic
        name = topic if subscription is None else retry_topic(topic, subscription)
        found = self._admin.topic(name, timeout)
        if subscription is None:
            self._look(found, timeout)
        return KafkaSender(config, name, guarantee, events)

    def receiver(
        self,
        topics: Sequence[str],
        subscription: Subscription,
        guarantee: Guarantee,
        settled: Settled,
        events: ReceiverEvents,
        *,
        prefetch: int = 500,
        prefetch_bytes: int = 64 * 1024 * 1024,
        timeout: float = 10.0,
    ) -> Receiver:
        """One group reads all `topics`, named after the first; and their retry topics, with retry="topic"."""
        group, own, known, apart = self._reading(topics, subscription, timeout)
        names, ids = {topic: topic for topic in own}, {**own}
        for topic in own if apart else ():
            again = retry_topic(topic, subscription.name)
            names[again], ids[again] = topic, str(self._admin.topic(again, timeout).topic_id)
        traits = Traits(
            nack="republish" if apart else "native",
            nack_delay="republish" if apart else "native",
            nack_blocks=not apart,
            ordered_lanes=not apart,
            attempts=known.get("attempts"),
            dead_letter=known.get("dead_letter"),
        )
        return KafkaReceiver(
            self._config.consumer(group, prefetch_bytes),
            names,
            ids,
            lambda partitions, limit: self._groups.starts(group, partitions, limit),
            traits,
            settled,
            events,
            self._settings.revoke_timeout,
        )

    def transactor(
        self, topics: Sequence[str], subscription: Subscription, *, instance: str | None, timeout: float = 10.0
    ) -> Transactor:
        """The predecessor of the same `instance` is fenced before the group is joined; without one the id is new."""
        group, ids, known, apart = self._reading(topics, subscription, timeout)
        if apart:
            raise ConfigurationError(
                f"subscription {subscription.name!r} keeps messages back in a retry topic, which transactions do not "
                "read: declare another one without retry='topic'"
            )
        instance = instance or str(uuid.uuid4())
        config = self._config.transactional(f"{group}--{instance}")
        producer = TransactionalProducer(config, lambda topic: self._admin.topic(topic, timeout), max(timeout, 30.0))
        return KafkaTransactor(
            producer,
            self._config.consumer(group, 64 * 1024 * 1024),
            ids,
            lambda partitions, limit: self._groups.starts(group, partitions, limit),
            subscription.name,
            subscription.dead_letter or known.get("dead_letter"),
            instance,
        )

    def _reading(self, topics: Sequence[str], subscription: Subscription, timeout: float) -> _Reading:
        """One group reads all topics, named after the first."""
        attached = _native(subscription.native).topic
        topics = [attached] if attached else topics
        group = _group(topics[0], subscription)
        known: Mapping[str, Any] = {}
        ids: dict[str, str] = {}
        for topic in topics:
            found = self._admin.topic(topic, timeout)
            known = {**settings_of(self._groups.places(group, found)), **known}
            self._look(found, timeout)
            ids[topic] = str(found.topic_id)
        return _Reading(group, ids, known, (subscription.retry or known.get("retry")) == "topic")

    def close(self, timeout: float) -> None:
        self._admin.close()


def retry_topic(topic: str, subscription: str) -> str:
    """Where a subscription's own redeliveries go, with retry="topic"."""
    return f"{topic}--{subscription}--retry"


def _group(topic: str, subscription: Subscription) -> str:
    return str(subscription.native.get("group") or f"{topic}--{subscription.name}")


def _native(given: Mapping[str, Any]) -> Native:
    return checked(Native, given, "native= of kafka")
