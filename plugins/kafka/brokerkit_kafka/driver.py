"""Kafka: topics, consumer groups named `topic--subscription`, and what they promise as configured.

A subscription's settings (attempts, dead letters, retry) are kept beside its committed offsets, in their metadata,
so that every member reads the same ones. A partition that was added after `declare` starts at its beginning.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

import confluent_kafka
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
    TopicDescription,
)

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
from brokerkit.errors import (
    AccessRefused,
    BrokerkitError,
    ConfigurationError,
    ConnectionLost,
    NotFound,
    NotSupported,
    PositionLost,
)
from brokerkit.guarantees import Claims, Guarantee
from brokerkit.plugins import Url
from brokerkit_kafka import backlog
from brokerkit_kafka.claims import Facts, claims
from brokerkit_kafka.errors import ACCESS, translated
from brokerkit_kafka.lane import settings_in
from brokerkit_kafka.receiver import KafkaReceiver
from brokerkit_kafka.sender import KafkaSender
from brokerkit_kafka.settings import Config, KafkaSettings
from brokerkit_kafka.transactional import TransactionalProducer
from brokerkit_kafka.transactor import KafkaTransactor

T = TypeVar("T")

_PATIENCE = 20.0
"""Seconds that coordinators and leaders are given to take office."""
_NATIVE = {"partitions", "replication", "min_insync", "config", "group", "topic"}


class KafkaDriver(Driver):
    blocking = False

    def __init__(self, url: Url, settings: KafkaSettings) -> None:
        self._config = Config(url, settings)
        self._settings = settings
        largest = int(self._config.client.get("message.max.bytes", "1000000"))
        self.capabilities = Capabilities(
            producer_guarantees=self._config.offered(),
            consumer_guarantees=frozenset({Guarantee.AT_MOST_ONCE, Guarantee.AT_LEAST_ONCE}),
            transactions=self._config.transactions(),
            positions=True,
            max_body_bytes=max(1, largest - 2048),
        )
        self._lock = threading.Lock()
        self._admin_client: AdminClient | None = None
        self._retired: deque[AdminClient] = deque(maxlen=2)  # not to be destroyed while it may still answer
        self._trouble: KafkaError | None = None
        self._facts: dict[str, Facts] = {}

    # ------------------------------------------------------------ what it promises

    def claims(self, producer: Guarantee, consumer: Guarantee) -> Claims:
        """From the client's options and the weakest topic that this driver has declared or opened; before that,
        from what `declare` would create here."""
        facts = list(self._facts.values()) or [self._planned()]
        weakest = Facts(min(fact.replication for fact in facts), min(fact.min_insync for fact in facts))
        return claims(self._config, weakest, self.capabilities.max_body_bytes or 0, producer, consumer)

    def describe(self) -> Mapping[str, str]:
        cluster = self._await(self._admin().describe_cluster(), 10.0, "describing the cluster")
        settings = self._settings
        return {
            "product": "Apache Kafka",
            "cluster": cluster.cluster_id,
            "nodes": str(len(cluster.nodes)),
            "client": f"confluent-kafka {confluent_kafka.__version__}, librdkafka {confluent_kafka.libversion()[0]}",
            "acks": self._config.acks(),
            "idempotence": str(self._config.idempotent()).lower(),
            "group_protocol": settings.group_protocol,
            "assignor": settings.assignor if settings.group_protocol == "classic" else "broker-side",
            "session_timeout": str(settings.session_timeout),
        }

    def _planned(self) -> Facts:
        try:
            nodes = len(self._await(self._admin().describe_cluster(), 5.0, "describing the cluster").nodes)
        except BrokerkitError:
            nodes = 1  # nothing better is known: the weakest claim
        return self._plan(nodes, {})

    def _plan(self, nodes: int, native: Mapping[str, Any]) -> Facts:
        replication = int(native.get("replication") or self._settings.replication or min(3, nodes))
        insync = native.get("min_insync") or self._settings.min_insync or (2 if replication >= 3 else 1)
        return Facts(replication, int(insync))

    # ------------------------------------------------------------ declaring

    def declare(self, topic: str, subscriptions: Sequence[Subscription], native: Mapping[str, Any]) -> None:
        _check_native(native)
        partitions = self._create(topic, native)
        for subscription in subscriptions:
            group = _group(topic, subscription)
            if subscription.dead_letter is not None:
                dead = Subscription("dead", start="earliest")
                self._begin(f"{subscription.dead_letter}--dead", subscription.dead_letter, dead, {})
            self._begin(group, topic, subscription, native, partitions)
            if subscription.retry == "topic":
                again = retry_topic(topic, subscription.name)
                self._create(again, {"partitions": partitions, **native}, internal=True)
                self._begin(group, again, Subscription(subscription.name, "earliest"), native)

    def _create(self, topic: str, native: Mapping[str, Any], *, internal: bool = False) -> int:
        """Creates the topic, or compares it with what is asked for; returns its partitions once all have leaders."""
        deadline = time.monotonic() + 30.0
        found = self._describe(topic)
        if found is None:
            nodes = len(self._await(self._admin().describe_cluster(), 10.0, "describing the cluster").nodes)
            plan = self._plan(nodes, native)
            config = {**native.get("config", {}), "min.insync.replicas": str(plan.min_insync)}
            new = NewTopic(
                topic,
                int(native.get("partitions") or self._settings.partitions),
                plan.replication,
                config={name: str(value) for name, value in config.items()},
            )
            try:
                self._await(self._admin().create_topics([new])[topic], 20.0, f"creating topic {topic!r}")
            except ConnectionLost as error:
                if "already exists" not in str(error):
                    raise
        while (found := self._describe(topic)) is None or any(p.leader is None for p in found.partitions):
            if time.monotonic() > deadline:
                raise ConnectionLost(f"topic {topic!r} has no leaders yet")
            time.sleep(0.02)
        facts = self._look(topic, found)
        asked = {**self._settings.model_dump(include=self._settings.model_fields_set), **native}
        actual = {
            "partitions": len(found.partitions),
            "replication": facts.replication,
            "min_insync": facts.min_insync,
        }
        for name, value in actual.items():
            if not internal and asked.get(name) not in (None, value):
                raise ConfigurationError(
                    f"topic {topic!r} exists with {name}={value}, not {asked[name]}: declare it as it is, or delete it"
                )
        return len(found.partitions)

    def _begin(
        self,
        group: str,
        topic: str,
        subscription: Subscription,
        native: Mapping[str, Any],
        partitions: int | None = None,
    ) -> None:
        """Commits where the group starts, for each partition that has no offset yet."""
        if partitions is None:
            partitions = self._create(topic, native, internal=True)
        committed = self._committed(group, topic, partitions)
        known = _settings_of(committed.values())
        wanted = {
            "attempts": subscription.attempts,
            "dead_letter": subscription.dead_letter,
            "retry": subscription.retry,
        }
        if known:
            for name, value in wanted.items():
                if value is not None and value != known.get(name):
                    raise ConfigurationError(
                        f"subscription {subscription.name!r} of {topic!r} exists with {name}={known.get(name)!r}, "
                        f"not {value!r}: declare it as it is, or delete it"
                    )
        missing = [number for number in range(partitions) if committed[number].offset < 0]
        if len(missing) < partitions:  # what was added later starts at its beginning; what was lost is begun anew
            missing = [number for number in missing if number < int(known.get("of", 0))]
        if not missing:
            return
        ends = self._offsets(topic, missing, latest=subscription.start == "now")
        text = json.dumps({name: value for name, value in wanted.items() if value is not None} | {"of": partitions})
        places = [TopicPartition(topic, number, ends[number], metadata=text) for number in missing]
        self._begin_at(group, places)

    def _begin_at(self, group: str, places: list[TopicPartition]) -> None:
        deadline = time.monotonic() + _PATIENCE
        doing = f"committing the start of group {group!r}"
        while True:
            asked = [ConsumerGroupTopicPartitions(group, places)]
            try:
                client = self._admin()
                future = client.alter_consumer_group_offsets(asked, request_timeout=3)[group]
                done = self._await(future, 5.0, doing)
                failed = [place.error for place in done.topic_partitions if place.error is not None]
                if not failed:
                    return
                error = translated(failed[0], doing)
            except ConnectionLost as lost:  # a young cluster makes its offsets topic now
                error = lost
            if not isinstance(error, ConnectionLost) or time.monotonic() > deadline:
                raise error
            time.sleep(0.1)

    def delete(self, topic: str, subscription: str | None) -> None:
        if subscription is not None:
            self._delete_groups([f"{topic}--{subscription}"])
            self._delete_topics([retry_topic(topic, subscription)])
            return
        groups = self._await(self._admin().list_consumer_groups(request_timeout=10), 15.0, "listing groups")
        self._delete_groups([g.group_id for g in groups.valid if g.group_id.startswith(f"{topic}--")])
        names = self._admin_list(10.0).topics
        again = [name for name in names if name.startswith(f"{topic}--") and name.endswith("--retry")]
        self._delete_topics([topic, *again])
        self._facts.pop(topic, None)

    def _delete_groups(self, groups: Sequence[str]) -> None:
        for group in groups:
            try:
                self._await(self._admin().delete_consumer_groups([group])[group], 15.0, f"deleting group {group!r}")
            except ConnectionLost as error:
                if "not empty" in str(error):
                    raise NotSupported(f"group {group!r} still has members: close its consumers first") from None
                if "does not exist" not in str(error):
                    raise

    def _delete_topics(self, topics: Sequence[str]) -> None:
        for topic in topics:
            if self._describe(topic) is not None:
                try:
                    self._await(self._admin().delete_topics([topic])[topic], 15.0, f"deleting topic {topic!r}")
                except NotFound:
                    continue
                deadline = time.monotonic() + 15.0
                while self._describe(topic) is not None and time.monotonic() < deadline:
                    time.sleep(0.02)

    def depth(self, topic: str, subscription: str) -> int:
        """End of the log minus committed offset, summed, the retry topic included. Where that is little, messages are
        counted; else transaction markers, aborted records and holes left by compaction count as messages."""
        gaps: dict[tuple[str, int], tuple[int, int]] = {}
        group = f"{topic}--{subscription}"
        for name in (topic, retry_topic(topic, subscription)):
            found = self._describe(name)
            if found is None:
                if name == topic:
                    raise NotFound(f"topic {topic!r} does not exist; declare it first")
                continue
            numbers = range(len(found.partitions))
            committed = self._committed(group, name, len(numbers))
            if name == topic and all(place.offset < 0 for place in committed.values()):
                raise NotFound(f"subscription {subscription!r} of {topic!r} does not exist; declare it first")
            ends = self._offsets(name, numbers, latest=True)
            fresh = [number for number in numbers if committed[number].offset < 0]
            begins = self._offsets(name, fresh, latest=False) if fresh else {}
            gaps |= {(name, n): (begins.get(n, committed[n].offset), ends[n]) for n in numbers}
        total = sum(max(0, end - begin) for begin, end in gaps.values())
        return backlog.counted(self._config.consumer(group, 0), gaps, 5.0) if 0 < total <= backlog.FEW else total

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
        _check_native(native or {})
        config = self._config.producer(guarantee, delivery_timeout)
        topic = str((native or {}).get("topic", topic))
        name = topic if subscription is None else retry_topic(topic, subscription)
        found = self._describe(name, timeout)
        if found is None:
            raise NotFound(f"topic {name!r} does not exist; declare it first")
        if subscription is None:
            self._look(name, found, timeout)
        return KafkaSender(config, name, guarantee, outcomes, events)

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
        _check_native(subscription.native)
        if "topic" in subscription.native:
            topics = [str(subscription.native["topic"])]
        group = _group(topics[0], subscription)
        known: Mapping[str, Any] = {}
        names: dict[str, str] = {}
        ids: dict[str, str] = {}
        for topic in topics:
            found = self._found(topic, timeout)
            known = {**_settings_of(self._places(group, topic, found).values()), **known}
            self._look(topic, found, timeout)
            names[topic], ids[topic] = topic, str(found.topic_id)
        retry = subscription.retry or known.get("retry") or "block"
        if retry == "topic":
            for topic in topics:
                again = retry_topic(topic, subscription.name)
                found = self._found(again, timeout)
                names[again], ids[again] = topic, str(found.topic_id)
        traits = Traits(
            nack="republish" if retry == "topic" else "native",
            nack_delay="republish" if retry == "topic" else "native",
            nack_blocks=retry == "block",
            attempts=known.get("attempts"),
            dead_letter=known.get("dead_letter"),
        )
        return KafkaReceiver(
            self._config.consumer(group, prefetch_bytes),
            names,
            ids,
            lambda partitions, limit: self._starts(group, partitions, limit),
            traits,
            settled,
            events,
            self._settings.revoke_timeout,
        )

    def transactor(
        self, topics: Sequence[str], subscription: Subscription, *, instance: str | None, timeout: float = 10.0
    ) -> Transactor:
        """The predecessor of the same `instance` is fenced before the group is joined; without one the id is new."""
        group = _group(topics[0], subscription)
        known: Mapping[str, Any] = {}
        ids: dict[str, str] = {}
        for topic in topics:
            found = self._found(topic, timeout)
            known = {**_settings_of(self._places(group, topic, found).values()), **known}
            self._look(topic, found, timeout)
            ids[topic] = str(found.topic_id)
        if (subscription.retry or known.get("retry")) == "topic":
            raise ConfigurationError(
                f"subscription {subscription.name!r} keeps messages back in a retry topic, which transactions do not "
                "read: declare another one without retry='topic'"
            )
        instance = instance or str(uuid.uuid4())
        config = self._config.transactional(f"{group}--{instance}")
        producer = TransactionalProducer(config, lambda topic: self._found(topic, timeout), max(timeout, 30.0))
        return KafkaTransactor(
            producer,
            self._config.consumer(group, 64 * 1024 * 1024),
            ids,
            lambda partitions, limit: self._starts(group, partitions, limit),
            subscription.name,
            subscription.dead_letter or known.get("dead_letter"),
            instance,
        )

    def close(self, timeout: float) -> None:
        with self._lock:
            self._admin_client = None

    # ------------------------------------------------------------ committed offsets

    def _starts(
        self, group: str, partitions: Sequence[TopicPartition], timeout: float
    ) -> Mapping[tuple[str, int], tuple[int, str]]:
        """Where each assigned partition goes on, with its settings text. Raises PositionLost."""
        starts: dict[tuple[str, int], tuple[int, str]] = {}
        for topic in {place.topic for place in partitions}:
            wanted = [place.partition for place in partitions if place.topic == topic]
            committed = self._places(group, topic, self._found(topic, timeout))
            fresh = [number for number in wanted if number not in committed or committed[number].offset < 0]
            text = next((place.metadata for place in committed.values() if place.metadata), "")
            begins = self._offsets(topic, fresh, latest=False) if fresh else {}
            for number in wanted:
                place = committed.get(number)
                start = begins[number] if number in begins or place is None else place.offset
                starts[topic, number] = (start, (place.metadata if place is not None else "") or text)
        return starts

    def _places(self, group: str, topic: str, found: TopicDescription) -> Mapping[int, TopicPartition]:
        """Committed offsets of every partition. Raises PositionLost where one that had an offset has none."""
        committed = self._committed(group, topic, len(found.partitions))
        declared = int(_settings_of(committed.values()).get("of", 0))
        gone = [number for number, place in committed.items() if place.offset < 0]
        if len(gone) == len(committed) or any(number < declared for number in gone):
            raise PositionLost(
                f"group {group!r} has no committed offset for partitions {gone} of topic {topic!r}: it was never "
                "declared, or its offsets expired or were deleted. Declare the subscription, with start= saying "
                "where it begins"
            )
        return committed

    def _committed(self, group: str, topic: str, partitions: int) -> dict[int, TopicPartition]:
        """Asked by a consumer that never joins: librdkafka's admin client ends the process when a coordinator that
        has not taken office answers this question (confluentinc/librdkafka#5040)."""
        asked = [TopicPartition(topic, number) for number in range(partitions)]
        doing = f"reading the offsets of group {group!r}"
        deadline = time.monotonic() + _PATIENCE
        unread = {"statistics.interval.ms": 0, "isolation.level": "read_uncommitted"}  # no wait for a transaction's end
        consumer = Consumer({**self._config.consumer(group, 0), **unread})
        try:
            while True:
                try:
                    places = consumer.committed(asked, timeout=3.0)
                    error = next((place.error for place in places if place.error is not None), None)
                except KafkaException as failed:
                    error = failed.args[0]
                if error is None:
                    return {place.partition: place for place in places}
                trouble = translated(error, doing)
                if not isinstance(trouble, ConnectionLost) or time.monotonic() > deadline:
                    raise trouble
                time.sleep(0.1)
        finally:
            consumer.close()

    def _offsets(self, topic: str, partitions: Iterable[int], *, latest: bool) -> dict[int, int]:
        spec = (OffsetSpec.latest if latest else OffsetSpec.earliest)()  # type: ignore[no-untyped-call]
        doing = f"asking for the offsets of {topic!r}"

        def ask(place: TopicPartition) -> Callable[[], Future[Any]]:
            return lambda: self._admin().list_offsets({place: spec}, request_timeout=3)[place]

        places = [TopicPartition(topic, number) for number in partitions]
        return {place.partition: self._persist(ask(place), doing).offset for place in places}

    # ------------------------------------------------------------ the admin client

    def _admin(self) -> AdminClient:
        with self._lock:
            if self._admin_client is None:
                try:
                    config: Any = {**self._config.admin(), "error_cb": self._on_error}
                    self._admin_client = AdminClient(config)
                except KafkaException as error:
                    raise ConfigurationError(f"client options: {error.args[0].str()}") from None
            return self._admin_client

    def _on_error(self, error: KafkaError) -> None:
        if self._trouble is None or error.code() in ACCESS or self._trouble.code() not in ACCESS:
            self._trouble = error

    def _admin_list(self, timeout: float) -> Any:
        try:
            return self._admin().list_topics(timeout=timeout)
        except KafkaException as error:
            raise translated(error.args[0], "listing topics") from None

    def _await(self, future: Future[T], timeout: float, doing: str) -> T:
        """The future's result; wrong credentials are told as soon as the broker has."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                result = future.result(min(0.1, max(0.0, deadline - time.monotonic())))
            except FutureTimeout:
                self._admin().poll(0)  # runs the error callback
                self._explain(doing, time.monotonic() >= deadline)
            except KafkaException as error:
                if error.args[0].code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT):
                    self._explain(doing, True)
                raise translated(error.args[0], doing) from None
            else:
                self._trouble = None
                return result

    def _explain(self, doing: str, over: bool) -> None:
        trouble = self._trouble
        if trouble is not None and trouble.code() in ACCESS:
            raise AccessRefused(f"{doing}: {trouble.str()}; see user, password and sasl_mechanism")
        if over:
            with self._lock:  # it may have lost sight of every broker: see outage.Forgotten
                if self._admin_client is not None:
                    self._retired.append(self._admin_client)
                    self._admin_client = None
            raise ConnectionLost(f"{doing}: {trouble.str() if trouble is not None else 'no answer in time'}")

    def _persist(self, ask: Callable[[], Future[T]], doing: str) -> T:
        """For what coordinators and leaders answer only once they have taken office."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._await(ask(), 3.0, doing)
            except ConnectionLost:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _describe(self, topic: str, timeout: float = 10.0) -> TopicDescription | None:
        future: Future[TopicDescription] = self._admin().describe_topics(
            TopicCollection([topic]), request_timeout=timeout
        )[topic]
        try:
            return self._await(future, timeout, f"looking up topic {topic!r}")
        except NotFound:
            return None
        except ConfigurationError as error:
            raise NotFound(str(error)) from None

    def _found(self, topic: str, timeout: float) -> TopicDescription:
        found = self._describe(topic, timeout)
        if found is None:
            raise NotFound(f"topic {topic!r} does not exist; declare it first")
        return found

    def _look(self, topic: str, found: TopicDescription, timeout: float = 10.0) -> Facts:
        """What the claims need to know of a topic; remembered, since neither changes by itself."""
        if topic not in self._facts:
            resource = ConfigResource(ResourceType.TOPIC, topic)
            future = self._admin().describe_configs([resource], request_timeout=timeout)[resource]
            config = self._await(future, timeout, f"reading the settings of topic {topic!r}")
            replication = min((len(partition.replicas) for partition in found.partitions), default=1)
            insync = min(replication, int(config["min.insync.replicas"].value or 1))
            self._facts[topic] = Facts(replication, insync)
        return self._facts[topic]


def retry_topic(topic: str, subscription: str) -> str:
    """Where a subscription's own redeliveries go, with retry="topic"."""
    return f"{topic}--{subscription}--retry"


def _group(topic: str, subscription: Subscription) -> str:
    return str(subscription.native.get("group") or f"{topic}--{subscription.name}")


def _settings_of(places: Iterable[TopicPartition]) -> Mapping[str, Any]:
    return next((found for place in places if (found := settings_in(place.metadata))), {})


def _check_native(native: Mapping[str, Any]) -> None:
    unknown = set(native) - _NATIVE
    if unknown:
        raise ConfigurationError(
            f"unknown native settings {sorted(unknown)} for kafka; known: {', '.join(sorted(_NATIVE))} "
            "(topic settings go into config={'retention.ms': …})"
        )
    for name in ("partitions", "replication", "min_insync"):
        value = native.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigurationError(f"native {name} must be a whole number of at least 1, got {value!r}")
