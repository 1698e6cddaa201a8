"""Consumer groups: where each goes on in a topic, and the subscription's settings, which are kept beside that.

The settings (attempts, dead letters, retry) are the metadata of the committed offsets, so that every member reads the
same ones; with them stands `of`, how many partitions there were when the subscription was declared. A partition that
was added later starts at its beginning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec, TopicDescription  # type: ignore[attr-defined]

from brokerkit.declared import check_same
from brokerkit.driver import Subscription
from brokerkit.errors import NotFound, PositionLost
from brokerkit_kafka.admin import Admin, patiently
from brokerkit_kafka.backlog import Gaps
from brokerkit_kafka.errors import made, translated
from brokerkit_kafka.settings import Config

BEGIN = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
END = OffsetSpec.latest()  # type: ignore[no-untyped-call]

Places = Mapping[int, TopicPartition]
"""What a group has committed in a topic, by partition; an offset below zero is none."""


class Groups:
    def __init__(self, admin: Admin, config: Config) -> None:
        self._admin = admin
        self._config = config

    def begin(self, group: str, topic: TopicDescription, subscription: Subscription) -> None:
        """Commits where the group starts, for each partition that has no offset yet."""
        committed = self.committed(group, topic)
        known = settings_of(committed)
        wanted = {
            "attempts": subscription.attempts,
            "dead_letter": subscription.dead_letter,
            "retry": subscription.retry,
        }
        if known:
            check_same(f"subscription {subscription.name!r} of {topic.name!r}", wanted, known)
        missing = _missing(committed)
        if len(missing) < len(committed):  # what was added later starts at its beginning; what was lost is begun anew
            missing = [number for number in missing if number < known.get("of", 0)]
        if missing:
            said = {name: value for name, value in wanted.items() if value is not None}
            text = json.dumps(said | {"of": len(committed)})
            spec = END if subscription.start == "now" else BEGIN
            starts = {number: self._admin.offset(topic.name, number, spec) for number in missing}
            self._commit(group, [TopicPartition(topic.name, n, start, metadata=text) for n, start in starts.items()])

    def committed(self, group: str, topic: TopicDescription) -> Places:
        """Asked by a consumer that never joins: librdkafka's admin client ends the process when a coordinator that
        has not taken office answers this question (confluentinc/librdkafka#5040)."""
        asked = [TopicPartition(topic.name, number) for number in range(len(topic.partitions))]
        unread = {"statistics.interval.ms": 0, "isolation.level": "read_uncommitted"}  # no wait for a transaction's end
        consumer = made(Consumer, {**self._config.consumer(group, 0), **unread})

        def ask() -> Places:
            doing = f"reading the offsets of group {group!r}"
            try:
                places = consumer.committed(asked, timeout=3.0)
            except KafkaException as error:
                raise translated(error.args[0], doing) from None
            _check(places, doing)
            return {place.partition: place for place in places}

        try:
            return patiently(ask)
        finally:
            consumer.close()

    def places(self, group: str, topic: TopicDescription) -> Places:
        """What is committed. Raises PositionLost where a partition that had an offset has none."""
        committed = self.committed(group, topic)
        declared = settings_of(committed).get("of", 0)
        gone = _missing(committed)
        if len(gone) == len(committed) or any(number < declared for number in gone):
            raise PositionLost(
                f"group {group!r} has no committed offset for partitions {gone} of topic {topic.name!r}: it was never "
                "declared, or its offsets expired or were deleted. Declare the subscription, with start= saying "
                "where it begins"
            )
        return committed

    def starts(
        self, group: str, partitions: Sequence[TopicPartition], timeout: float
    ) -> Mapping[tuple[str, int], tuple[int, str]]:
        """Where each partition goes on, with its settings text. Raises PositionLost."""
        starts: dict[tuple[str, int], tuple[int, str]] = {}
        for topic in {place.topic for place in partitions}:
            committed = self.places(group, self._admin.topic(topic, timeout))
            text = next((place.metadata for place in committed.values() if place.metadata), "")
            for number in (place.partition for place in partitions if place.topic == topic):
                place = committed.get(number)
                if place is None or place.offset < 0:
                    starts[topic, number] = self._admin.offset(topic, number, BEGIN), text
                else:
                    starts[topic, number] = place.offset, place.metadata or text
        return starts

    def behind(self, topic: TopicDescription, committed: Places) -> Gaps:
        """From the committed offsets to the ends of the log."""
        gaps: Gaps = {}
        for number, place in committed.items():
            start = place.offset if place.offset >= 0 else self._admin.offset(topic.name, number, BEGIN)
            gaps[topic.name, number] = (start, self._admin.offset(topic.name, number, END))
        return gaps

    def named(self, prefix: str) -> list[str]:
        found = self._admin.ask("listing groups", 15.0, lambda client: client.list_consumer_groups(request_timeout=10))
        return [group.group_id for group in found.valid if group.group_id.startswith(prefix)]

    def delete(self, group: str) -> None:
        """One that does not exist is no error."""
        with suppress(NotFound):
            self._admin.ask(
                f"deleting group {group!r}", 15.0, lambda client: client.delete_consumer_groups([group])[group]
            )

    def _commit(self, group: str, places: list[TopicPartition]) -> None:
        doing = f"committing the start of group {group!r}"
        asked = [ConsumerGroupTopicPartitions(group, places)]

        def ask() -> None:
            answer = self._admin.ask(
                doing, 5.0, lambda client: client.alter_consumer_group_offsets(asked, request_timeout=3)[group]
            )
            _check(answer.topic_partitions, doing)

        patiently(ask)  # a young cluster makes its offsets topic now


def settings_of(committed: Places) -> Mapping[str, Any]:
    """A subscription's settings; foreign metadata is none."""
    for place in committed.values():
        with suppress(ValueError):
            found = json.loads(place.metadata or "null")
            if isinstance(found, dict) and isinstance(found.get("of"), int):
                return found
    return {}


def _missing(committed: Places) -> list[int]:
    return [number for number, place in committed.items() if place.offset < 0]


def _check(places: Iterable[TopicPartition], doing: str) -> None:
    for place in places:
        if place.error is not None:
            raise translated(place.error, doing)
