"""Consume, transform, produce: one member of a consumer group whose offsets are committed by its transactions.

What a transaction has received belongs to the membership that it began in. Whatever moves in the group while it is
open ends it: it is aborted, its messages come again to whoever has their partitions then, and nothing of it is kept.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from confluent_kafka import OFFSET_STORED, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Native

from brokerkit.driver import Incoming, Token, Transactor
from brokerkit.errors import (
    BrokerkitError,
    Closed,
    ConfigurationError,
    ConnectionLost,
    LeaseLost,
    NotSupported,
    PositionLost,
)
from brokerkit.message import Fields
from brokerkit_kafka.errors import fetching, made, translated
from brokerkit_kafka.incoming import KafkaIncoming
from brokerkit_kafka.lane import SHIFT, Lane
from brokerkit_kafka.outage import Forgotten
from brokerkit_kafka.receiver import SLICE, Starts
from brokerkit_kafka.transactional import TransactionalProducer

_PATIENCE = 30.0
"""Seconds that an abort, and the producer that follows it, may take before the session is given up."""
_STABLE = 5.0
"""Seconds that a rebalance waits for committed offsets; after that the client goes on asking by itself."""


class KafkaTransactor(Transactor):
    """A lane's `committed` is where the open transaction began in it, `asked` where it will go on after the commit.

    Of what it has received it keeps tokens: 100,000 messages that are kept for a second cost as much again in page
    faults and walks of the cycle collector as receiving and sending them on.
    """

    def __init__(
        self,
        producer: TransactionalProducer,
        config: dict[str, Any],
        topics: Mapping[str, str],
        starts: Starts,
        subscription: str,
        dead_letter: str | None,
        instance: str,
    ) -> None:
        """`topics`: name to topic id."""
        self.longest = producer.longest
        self.instance = instance
        self._producer = producer
        self._topics = topics
        self._starts = starts
        self._subscription = subscription
        self._dead_letter = dead_letter
        self._cooperative = (
            config["group.protocol"] == "consumer" or config["partition.assignment.strategy"] == "cooperative-sticky"
        )
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._number = 0
        self.send = producer.send  # type: ignore[method-assign]  # each message passes here
        self._closed = False
        self._over: str | None = None
        self._failure: BrokerkitError | None = None
        self._forgotten = Forgotten()
        self._group: Any = None
        self._forget()
        patience = {"max.poll.interval.ms": max(300_000, int(2000 * producer.longest))}
        self._consumer = made(Consumer, {**patience, **config, "stats_cb": self._on_statistics})
        self._consumer.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )

    def begin(self) -> None:
        self._check()
        self._forget()
        self._producer.begin(_PATIENCE)

    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        deadline = time.monotonic() + timeout
        while True:
            self._check()
            last = self._number
            try:
                batch = self._fetch(max_messages, max(0.0, min(deadline - time.monotonic(), SLICE)))
            except KafkaException as error:  # one that ends the consumer does not reach its callback
                self._over = error.args[0].str()
                raise ConnectionLost(f"receiving: {self._over}") from None
            found = self._admit(batch, last) if batch else []
            self._check()
            if self._void is not None:
                raise LeaseLost(self._void)
            if found or time.monotonic() >= deadline:
                return cast("Sequence[Incoming]", found)

    def send(self, topic: str, fields: Fields) -> None:
        self._producer.send(topic, fields)

    def settle(self, acks: Sequence[Token], rejects: Sequence[tuple[Incoming, str]] = ()) -> None:
        """Rejects are copies sent to the dead letters within the transaction."""
        self._settled += acks
        for incoming, reason in rejects:
            self._bury(incoming, reason)
            self._settled.append(incoming.token)

    def commit(self) -> None:
        if self._void is not None:
            raise LeaseLost(self._void)
        ends = self._ends()
        offsets = [
            TopicPartition(lane.native_topic, lane.partition, end, metadata=lane.metadata)
            for lane, end in ends.items()
            if end > lane.committed
        ]
        self._producer.commit(offsets, self._group)
        for lane, end in ends.items():
            behind, lane.committed = lane.asked, end
            if behind != end:  # what was not settled comes again
                self._seek(lane)
            lane.asked = None
        self._forget()

    def abort(self) -> None:
        """After a commit that may have happened the broker is asked where to go on, else that is known here."""
        lanes = [lane for lane in self._touched if self._lanes.get((lane.native_topic, lane.partition)) is lane]
        self._producer.abort(_PATIENCE)
        if self._producer.asked and lanes:
            self._ask(lanes)
        for lane in lanes:
            lane.asked = None
            self._seek(lane)
        self._forget()

    def close(self, timeout: float) -> None:
        if self._closed:
            return
        self._closed = True
        self._producer.close(timeout)
        # A member that cannot reach the broker takes long to leave; it is left behind in its thread.
        leaving = threading.Thread(target=self._consumer.close, name="brokerkit kafka leaving", daemon=True)
        leaving.start()
        leaving.join(timeout)

    # ------------------------------------------------------------ receiving

    def _fetch(self, most: int, wait: float) -> list[Native]:
        first = self._consumer.poll(wait)
        if first is None:
            return []
        return [first, *self._consumer.consume(most - 1, 0)] if most > 1 else [first]

    def _admit(self, batch: Sequence[Native], last: int) -> list[KafkaIncoming]:
        """What of a fetched batch is ours. It comes in runs of one partition each, which keeps a message cheap."""
        found: list[KafkaIncoming] = []
        append = found.append
        several = len(self._topics) > 1
        lane: Lane | None = None
        base = offset = begin = 0
        topic: str | None = None
        partition: int | None = None
        for native in batch:
            if native.error() is not None:
                self._message_error(native, native.error())  # type: ignore[arg-type]
                continue
            if native.partition() != partition or (several and native.topic() != topic):
                if lane is not None:
                    lane.asked = offset + 1
                topic, partition = native.topic(), native.partition()
                lane = self._taken(topic, partition, native.offset(), last)  # type: ignore[arg-type]
                if lane is not None:
                    base, begin = lane.base, lane.asked or 0
                    offset = begin - 1
            if lane is not None and (at := native.offset()) >= begin:  # type: ignore[operator]
                offset = at  # type: ignore[assignment]
                append(KafkaIncoming(native, lane.place, base + offset, len(native)))
        if lane is not None:
            lane.asked = offset + 1
        if found and self._group is None and not self._join():
            return []
        self._received += [incoming.token for incoming in found]
        return found

    def _taken(self, topic: str, partition: int, offset: int, last: int) -> Lane | None:
        """The lane of a run of messages, now part of the transaction; None where they are not ours. One that came to
        us only while the batch was fetched is read again, for these messages may be older than that."""
        lane = self._lanes.get((topic, partition))
        if lane is None or lane.asked is not None:
            return lane
        if lane.base >> SHIFT > last:
            self._seek(lane)
            return None
        if lane.committed < 0:
            lane.committed = offset
        lane.asked = lane.committed
        self._touched.append(lane)
        return lane

    def _join(self) -> bool:
        """Takes the membership that the transaction belongs to. A member that is being thrown out has none: what it
        got is put back."""
        self._group = self._consumer.consumer_group_metadata()
        if _generation(self._group) >= 0:
            return True
        for lane in self._touched:
            lane.asked = None
            self._seek(lane)
        self._forget()
        return False

    def _message_error(self, native: Native, error: KafkaError) -> None:
        what = fetching(f"{native.topic()}/{native.partition()}", error)
        if isinstance(what, PositionLost):
            self._failure = self._really_lost(native, what)
        if what is not None and self._failure is None:
            self._over = str(what)

    def _really_lost(self, native: Native, lost: PositionLost) -> BrokerkitError | None:
        """Where the client looked up the group's offset by itself, while transactions were pending, its word that there
        is none is no proof: the group is asked again. None if it has one, which another session will find."""
        lane = self._lanes.get((native.topic() or "", native.partition() or 0))
        if lane is None or lane.committed >= 0:
            return lost
        try:
            self._starts([TopicPartition(lane.native_topic, lane.partition)], 10.0)
        except PositionLost as error:
            return error
        except BrokerkitError:
            return None  # nobody can tell now: the next session asks again
        return None

    def _seek(self, lane: Lane) -> None:
        """To where the next transaction begins."""
        offset = OFFSET_STORED if lane.committed < 0 else lane.committed
        try:
            self._consumer.seek(TopicPartition(lane.native_topic, lane.partition, offset))
        except KafkaException as error:
            raise ConnectionLost(f"going back in {lane.name}: {error.args[0].str()}") from None

    def _ask(self, lanes: Sequence[Lane]) -> None:
        """Where the group goes on in these lanes, once no transaction is pending in them."""
        asked = [TopicPartition(lane.native_topic, lane.partition) for lane in lanes]
        try:
            places = self._consumer.committed(asked, timeout=_PATIENCE)
        except KafkaException as error:
            raise ConnectionLost(f"reading the group's offsets: {error.args[0].str()}") from None
        for lane, place in zip(lanes, places, strict=True):
            if place.error is not None:
                raise ConnectionLost(f"reading the group's offsets: {place.error.str()}")
            lane.committed = place.offset if place.offset >= 0 else lane.committed

    # ------------------------------------------------------------ committing

    def _ends(self) -> Mapping[Lane, int]:
        """Where each lane goes on: behind what was settled, which is a prefix of what was received."""
        if len(self._settled) == len(self._received):
            return {lane: lane.asked or lane.committed for lane in self._touched}
        settled = set(self._settled)
        lanes = {lane.base >> SHIFT: lane for lane in self._touched}
        ends: dict[Lane, int] = {}
        for token in self._received:
            lane = lanes[token >> SHIFT]
            if token not in settled:
                ends.setdefault(lane, token - lane.base)
            elif lane in ends:
                raise NotSupported("Kafka commits prefixes: a message was settled, and one before it was not")
        return {lane: ends.get(lane, lane.asked or lane.committed) for lane in self._touched}

    def _bury(self, incoming: Incoming, reason: str) -> None:
        if self._dead_letter is None:
            raise ConfigurationError(
                f"subscription {self._subscription!r} has no dead letters: declare it with attempts= or dead_letter="
            )
        headers = {
            **{name: value for name, value in incoming.all_headers.items() if name != "brokerkit-attempt"},
            "brokerkit-dead-reason": reason,
            "brokerkit-dead-topic": incoming.topic,
            "brokerkit-dead-subscription": self._subscription,
        }
        self._producer.send(self._dead_letter, incoming.message._replace(headers=headers))

    def _forget(self) -> None:
        self._touched: list[Lane] = []
        self._received: list[Token] = []
        self._settled: list[Token] = []
        self._group = None
        self._void: str | None = None

    # ------------------------------------------------------------ rebalances, inside poll

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._moved("work moved between the members of the group")
        places: list[TopicPartition] = []
        try:
            places = self._assign(partitions)
        except BrokerkitError as error:
            self._failure = error
        except KafkaException as error:
            self._failure = translated(error.args[0], "looking up committed offsets")
        (consumer.incremental_assign if self._cooperative else consumer.assign)(places)

    def _assign(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        starts = self._places(partitions)
        texts: dict[str, str] = {topic: text for (topic, _), (_, text) in starts.items() if text}
        places = []
        for (topic, partition), (start, text) in starts.items():
            self._number += 1
            lane = Lane(self._number, topic, partition, topic, self._topics[topic], start, text or texts.get(topic, ""))
            self._lanes[topic, partition] = lane
            places.append(TopicPartition(topic, partition, OFFSET_STORED if start < 0 else start))
        return places

    def _places(self, partitions: Sequence[TopicPartition]) -> Mapping[tuple[str, int], tuple[int, str]]:
        """Committed offsets and settings; -1 where a transaction of somebody else's is still pending, so that the
        client has to wait for them."""
        asked = [TopicPartition(place.topic, place.partition) for place in partitions]
        if not asked:
            return {}
        try:
            found = self._consumer.committed(asked, timeout=_STABLE)
        except KafkaException as error:
            if not error.args[0].retriable() and error.args[0].code() not in _PASSING:
                raise
            return {(place.topic, place.partition): (-1, "") for place in asked}
        pending = {(p.topic, p.partition): (-1, "") for p in found if p.error is not None}
        fresh = [place for place in found if place.offset < 0 and place.error is None]
        committed = {(p.topic, p.partition): (p.offset, p.metadata or "") for p in found if p.offset >= 0}
        return {**pending, **committed, **(self._starts(fresh, 10.0) if fresh else {})}

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Given up in order or lost: between two transactions nothing is open that could be kept; inside one it is
        over, for its user has not said yet that it is whole."""
        self._moved("its partitions went to another member of the group")
        for place in partitions:
            self._lanes.pop((place.topic, place.partition), None)
        if self._cooperative:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()

    def _moved(self, reason: str) -> None:
        if self._touched:
            self._void = reason

    # ------------------------------------------------------------ the session

    def _check(self) -> None:
        if self._closed:
            raise Closed("the transactor was closed")
        if self._failure is not None:
            raise self._failure
        if self._over is not None:
            raise ConnectionLost(self._over)

    def _on_statistics(self, statistics: str) -> None:
        if self._forgotten.seen(statistics):
            self._over = Forgotten.REASON


_PASSING = {
    KafkaError._TIMED_OUT,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
}
"""Answers to a question for offsets that say: later."""

_MAGIC = b"CGMDv2:"


def _generation(group: object) -> int:
    """The member's generation or epoch, which the Python client keeps in librdkafka's own form; below zero it is no
    member, and a commit would be checked against nobody."""
    if not isinstance(group, bytes) or not group.startswith(_MAGIC):
        raise NotSupported("this version of confluent-kafka keeps its group metadata in a form that is not known here")
    return int.from_bytes(group[len(_MAGIC) : len(_MAGIC) + 4], sys.byteorder, signed=True)
