"""Topics: looked up, made and deleted by librdkafka's admin client."""

from __future__ import annotations

import threading
import time
import weakref
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


_NO_ANSWER = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._DESTROY)


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


class _Told:
    """The first error that librdkafka told, or the first about access."""

    def __init__(self) -> None:
        self.error: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        if self.error is None or error.code() in ACCESS or self.error.code() not in ACCESS:
            self.error = error


_dropped: deque[AdminClient] = deque()
"""Clients whose Admin was dropped unclosed.

A client has to be closed by one of our threads: when the garbage collector happens to run in the thread in
which it answers, destroying it there aborts the process (rd_kafka_destroy's documented restriction).
"""


class Admin:
    """Raises NotFound for a topic that does not exist. Safe from several threads."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._told = _Told()
        self._config = {**config, "error_cb": self._told}
        self._lock = threading.Lock()
        self._client: list[AdminClient] = []  # at most one; it outlives this object
        weakref.finalize(self, _dropped.extend, self._client)
        while _dropped:
            _end(_dropped.pop())

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
        config = self._settings(ResourceType.TOPIC, topic.name, timeout)
        replication = min((len(partition.replicas) for partition in topic.partitions), default=1)
        return Facts(
            replication,
            min(replication, int(config["min.insync.replicas"].value or 1)),
            _retention(
                config["cleanup.policy"].value, int(config["retention.ms"].value), int(config["segment.ms"].value)
            ),
        )

    def retention(self, node: int, timeout: float = 10.0) -> float | None:
        """As `Facts.retention_seconds`, of topics that leave it to this node."""
        config = self._settings(ResourceType.BROKER, str(node), timeout)

        def milliseconds(name: str) -> int:
            for unit, factor in (("ms", 1), ("minutes", 60_000), ("hours", 3_600_000)):
                entry = config.get(f"{name}.{unit}")
                if entry is not None and entry.value:
                    return int(entry.value) * factor
            return -1

        return _retention(config["log.cleanup.policy"].value, milliseconds("log.retention"), milliseconds("log.roll"))

    def create(self, name: str, partitions: int, facts: Facts, options: Mapping[str, Any]) -> None:
        """Where another one is faster, the topic is as that one asked for."""
        config = {**options, "min.insync.replicas": facts.min_insync}
        new = NewTopic(name, partitions, facts.replication, config={key: str(value) for key, value in config.items()})
        with suppress(Exists):
            self.ask(f"creating topic {name!r}", 20.0, lambda client: client.create_topics([new])[name])

    def ready(self, name: str) -> TopicDescription:
        """The topic, once all its partitions have leaders and every node has heard of it: others may ask any node."""

        def look() -> TopicDescription:
            with suppress(NotFound):
                found = self.topic(name)
                nodes = self.cluster().nodes
                for node in nodes if len(nodes) > 1 else ():
                    self._settings(ResourceType.TOPIC, name, 3.0, broker=node.id)
                if all(partition.leader is not None for partition in found.partitions):
                    return found
            raise ConnectionLost(f"topic {name!r} has no leaders yet, or not every node knows it")

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

    def _settings(self, kind: ResourceType, name: str, timeout: float, **where: int) -> Mapping[str, Any]:
        """As any node has them, or the one of `broker`."""
        resource = ConfigResource(kind, name)
        found: Mapping[str, Any] = self.ask(
            f"reading the settings of {kind.name.lower()} {name!r}",
            timeout,
            lambda client: client.describe_configs([resource], request_timeout=timeout, **where)[resource],
        )
        return found

    def ask(self, doing: str, timeout: float, question: Callable[[AdminClient], Future[T]]) -> T:
        """The answer to `question`. Wrong credentials are told as soon as the broker has."""
        client = self._connected()
        deadline = time.monotonic() + timeout
        try:
            future = question(client)
            while True:
                try:
                    answer = future.result(min(0.1, max(0.0, deadline - time.monotonic())))
                except FutureTimeout:
                    client.poll(0)  # runs the error callback
                    over = time.monotonic() >= deadline
                except KafkaException as error:
                    over = error.args[0].code() in _NO_ANSWER
                    if not over:
                        raise translated(error.args[0], doing) from None
                else:
                    self._told.error = None
                    return answer
                trouble = self._told.error
                if trouble is not None and trouble.code() in ACCESS:
                    raise translated(trouble, doing)
                if over:
                    self._replace(client)
                    raise ConnectionLost(f"{doing}: {trouble.str() if trouble is not None else 'no answer in time'}")
        except RuntimeError:  # the client is closed: by close(), or by another thread that had no answer from it
            raise ConnectionLost(f"{doing}: the connection was closed meanwhile") from None

    def close(self) -> None:
        for client in self._client.copy():
            self._replace(client)

    def _exists(self, name: str) -> bool:
        try:
            self.topic(name)
        except NotFound:
            return False
        return True

    def _connected(self) -> AdminClient:
        with self._lock:
            if not self._client:
                self._client.append(made(AdminClient, self._config))
            return self._client[0]

    def _replace(self, client: AdminClient) -> None:
        """It may have lost sight of every broker (see outage.Forgotten): the next question makes another."""
        with self._lock:
            if client in self._client:
                self._client.remove(client)
                _end(client)


def _retention(policy: str, kept: int, segment: int) -> float | None:
    """In seconds, from milliseconds: a segment goes as a whole, once the last message in it is old enough, and is
    looked at every five minutes (log.retention.check.interval.ms)."""
    if "delete" not in policy or kept < 0:
        return None
    return (kept + segment) / 1000 + 300.0


def _end(client: AdminClient) -> None:
    with client:
        pass
