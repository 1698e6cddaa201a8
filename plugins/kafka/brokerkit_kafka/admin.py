"""Topics: looked up, made and deleted by librdkafka's admin client."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    DescribeClusterResult,
    NewTopic,
    OffsetSpec,
    ResourceType,
    TopicDescription,
)

from brokerkit.errors import ConfigurationError, ConnectionLost, NotFound
from brokerkit_kafka.claims import Facts
from brokerkit_kafka.errors import ACCESS, Exists, made, translated

T = TypeVar("T")

_PATIENCE = 20.0
"""Seconds that coordinators and leaders are given to take office."""


def patiently(ask: Callable[[], T]) -> T:
    """For what is answered only once coordinators and leaders have taken office."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return ask()
        except ConnectionLost:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Admin:
    """Raises NotFound for a topic that does not exist. Safe from several threads."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = {**config, "error_cb": self._on_error}
        self._lock = threading.Lock()
        self._client: AdminClient | None = None
        self._retired: deque[AdminClient] = deque(maxlen=2)  # not to be destroyed while it may still answer
        self._trouble: KafkaError | None = None

    def cluster(self, timeout: float = 10.0) -> DescribeClusterResult:
        found: DescribeClusterResult = self.ask("describing the cluster", timeout, AdminClient.describe_cluster)
        return found

    def topic(self, name: str, timeout: float = 10.0) -> TopicDescription:
        try:
            found: TopicDescription = self.ask(
                f"looking up topic {name!r}",
                timeout,
                lambda client: client.describe_topics(TopicCollection([name]), request_timeout=timeout)[name],
            )
            return found
        except (NotFound, ConfigurationError):  # or no topic can have this name
            raise NotFound(f"topic {name!r} does not exist; declare it first") from None

    def facts(self, topic: TopicDescription, timeout: float = 10.0) -> Facts:
        resource = ConfigResource(ResourceType.TOPIC, topic.name)
        config = self.ask(
            f"reading the settings of topic {topic.name!r}",
            timeout,
            lambda client: client.describe_configs([resource], request_timeout=timeout)[resource],
        )
        replication = min((len(partition.replicas) for partition in topic.partitions), default=1)
        return Facts(replication, min(replication, int(config["min.insync.replicas"].value or 1)))

    def create(self, name: str, partitions: int, facts: Facts, options: Mapping[str, Any]) -> None:
        """Where another one is faster, the topic is as that one asked for."""
        config = {**options, "min.insync.replicas": facts.min_insync}
        new = NewTopic(name, partitions, facts.replication, config={key: str(value) for key, value in config.items()})
        with suppress(Exists):
            self.ask(f"creating topic {name!r}", 20.0, lambda client: client.create_topics([new])[name])

    def ready(self, name: str) -> TopicDescription:
        """The topic, once all its partitions have leaders. One that was just made need not be known everywhere."""

        def look() -> TopicDescription:
            with suppress(NotFound):
                found = self.topic(name)
                if all(partition.leader is not None for partition in found.partitions):
                    return found
            raise ConnectionLost(f"topic {name!r} has no leaders yet")

        return patiently(look)

    def delete(self, name: str) -> None:
        """Returns when it is gone; one that does not exist is no error."""

        def look() -> None:
            if self._exists(name):
                raise ConnectionLost(f"topic {name!r} is still being deleted")

        if self._exists(name):
            with suppress(NotFound):
                self.ask(f"deleting topic {name!r}", 15.0, lambda client: client.delete_topics([name])[name])
            patiently(look)

    def names(self) -> list[str]:
        try:
            return list(self._connected().list_topics(timeout=10.0).topics)
        except KafkaException as error:
            raise translated(error.args[0], "listing topics") from None

    def offset(self, topic: str, partition: int, spec: OffsetSpec) -> int:
        """Where a partition begins or ends, as `spec` asks."""
        place = TopicPartition(topic, partition)
        answer = patiently(
            lambda: self.ask(
                f"asking for the offsets of {topic!r}",
                3.0,
                lambda client: client.list_offsets({place: spec}, request_timeout=3)[place],
            )
        )
        return int(answer.offset)

    def ask(self, doing: str, timeout: float, question: Callable[[AdminClient], Future[T]]) -> T:
        """The answer to `question`. Wrong credentials are told as soon as the broker has."""
        client = self._connected()
        future = question(client)
        deadline = time.monotonic() + timeout
        while True:
            try:
                answer = future.result(min(0.1, max(0.0, deadline - time.monotonic())))
            except FutureTimeout:
                client.poll(0)  # runs the error callback
                over = time.monotonic() >= deadline
            except KafkaException as error:
                over = error.args[0].code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT)
                if not over:
                    raise translated(error.args[0], doing) from None
            else:
                self._trouble = None
                return answer
            trouble = self._trouble
            if trouble is not None and trouble.code() in ACCESS:
                raise translated(trouble, doing)
            if over:
                self._retire(client)
                raise ConnectionLost(f"{doing}: {trouble.str() if trouble is not None else 'no answer in time'}")

    def close(self) -> None:
        with self._lock:
            self._client = None

    def _exists(self, name: str) -> bool:
        try:
            self.topic(name)
        except NotFound:
            return False
        return True

    def _connected(self) -> AdminClient:
        with self._lock:
            if self._client is None:
                self._client = made(AdminClient, self._config)
            return self._client

    def _retire(self, client: AdminClient) -> None:
        """It may have lost sight of every broker: see outage.Forgotten."""
        with self._lock:
            if self._client is client:
                self._retired.append(client)
                self._client = None

    def _on_error(self, error: KafkaError) -> None:
        if self._trouble is None or error.code() in ACCESS or self._trouble.code() not in ACCESS:
            self._trouble = error
