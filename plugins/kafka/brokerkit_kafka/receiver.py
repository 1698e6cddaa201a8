"""A member of a consumer group: fetching, rebalances, and commits of contiguous prefixes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Native

from brokerkit.driver import (
    End,
    Incoming,
    Nack,
    Position,
    Receiver,
    ReceiverEvents,
    Reject,
    Settled,
    Settlement,
    Token,
    Traits,
)
from brokerkit.errors import BrokerkitError, Closed, ConfigurationError, ConnectionLost, NotSupported, PositionLost
from brokerkit_kafka.errors import translated
from brokerkit_kafka.incoming import KafkaIncoming
from brokerkit_kafka.lane import SHIFT, Lane
from brokerkit_kafka.outage import Forgotten, Outage

COMMIT_EVERY = 0.1
"""Seconds between two commits at most, while there is something to commit."""
SLICE = 0.02
"""Seconds of one poll: what other threads have noted down waits no longer."""
_MASK = (1 << SHIFT) - 1
_IDLE_POLL = 0.5
"""Seconds without room before partitions are paused: pausing throws away what librdkafka has fetched ahead."""
_STASH = 100
"""Messages taken from librdkafka aside while the layer wants none, before partitions are paused."""
_LOOK_AHEAD = 1000
"""Delayed messages of a retry partition that are kept in memory, so that short delays pass long ones."""

_NOT_OURS = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.REBALANCE_IN_PROGRESS,
}
"""Answers that say for certain that a commit was not taken."""

Starts = Callable[[Sequence[TopicPartition], float], Mapping[tuple[str, int], tuple[int, str]]]
"""Where partitions go on, and the settings text to repeat in their commits. Raises PositionLost."""


class KafkaReceiver(Receiver):
    """Commits are asynchronous, one at a time, at most every `COMMIT_EVERY` seconds, always the contiguous prefix
    of a partition that is assigned at that moment. librdkafka's callbacks (assignment, commit answers, errors)
    run inside `receive`, or inside `flush` when nobody receives any more.

    Only the thread that holds `_polling` calls the client: a call from another thread waits for callbacks to end,
    and callbacks wait for `_lock`. `settle` therefore only takes notes.
    """

    def __init__(
        self,
        config: dict[str, Any],
        topics: Mapping[str, str],
        topic_ids: Mapping[str, str],
        starts: Starts,
        traits: Traits,
        settled: Settled,
        events: ReceiverEvents,
        revoke_timeout: float,
    ) -> None:
        self.traits = traits
        self._topics = topics
        self._topic_ids = topic_ids
        self._starts = starts
        self._settled = settled
        self._events = events
        self._revoke_timeout = revoke_timeout
        self._cooperative = (
            config["group.protocol"] == "consumer" or config["partition.assignment.strategy"] == "cooperative-sticky"
        )
        self._lock = threading.RLock()
        self._polling = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._by_number: dict[int, Lane] = {}
        self._number = 0
        self._waiting: set[Lane] = set()
        self._stash: list[Native] = []
        self._all_paused = False
        self._polled_at = self._received_at = time.monotonic()
        self._committed_at = 0.0
        self._revoking = False
        self._quiet = False
        self._hurry = False
        self._stranded = False
        self._closed = False
        self._failure: BrokerkitError | None = None
        self._over: str | None = None
        self._outage = Outage(events)
        self._forgotten = Forgotten()
        callbacks = {"error_cb": self._on_error, "stats_cb": self._on_statistics, "on_commit": self._on_commit}
        try:
            self._consumer = Consumer({**config, **callbacks})
            self._consumer.subscribe(
                list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
        except KafkaException as error:
            raise ConfigurationError(f"client options: {error.args[0].str()}") from None

    # ------------------------------------------------------------ receiving

    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        self._check()
        if self._stranded and max_messages:
            raise ConnectionLost("the receiver was flushed while nobody received")
        deadline = time.monotonic() + timeout
        with self._polling:
            while True:
                self._received_at = time.monotonic()
                self._commit_if_due()
                wait = max(0.0, min(deadline - self._received_at, SLICE))
                if max_messages == 0:
                    found: list[KafkaIncoming] = []
                    self._keep_alive(wait)
                else:
                    self._pause_all(False)
                    found = self._again(max_messages)
                    found += self._fetch(max_messages - len(found), 0.0 if found else wait)
                self._check()
                if found or time.monotonic() >= deadline:
                    return found

    def _fetch(self, room: int, wait: float) -> list[KafkaIncoming]:
        consumer = self._consumer
        batch, self._stash = self._stash, []
        self._polled_at = time.monotonic()
        if not batch:
            first = consumer.poll(wait)
            if first is None:
                if self._outage.probe_due():
                    self._probe()
                return []
            batch = [first]
        elif (more := consumer.poll(0)) is not None:
            batch.append(more)
        if len(batch) < room:
            batch += consumer.consume(room - len(batch), 0)
        with self._lock:
            if len(batch) > room:
                self._stash = batch[room:]
                batch = batch[:room]
            return self._admit(batch)

    def _admit(self, batch: Sequence[Native]) -> list[KafkaIncoming]:
        """What of a fetched batch is ours and may be handed out now."""
        found: list[KafkaIncoming] = []
        lanes = self._lanes
        for native in batch:
            error = native.error()
            if error is not None:
                self._message_error(native, error)
                continue
            lane = lanes.get((native.topic(), native.partition()))  # type: ignore[arg-type]
            if lane is None:
                continue
            progress = lane.progress
            offset: int = native.offset()  # type: ignore[assignment]
            if offset <= progress.last:
                continue
            incoming = KafkaIncoming(native, lane, lane.base + offset)
            progress.open[offset] = incoming
            progress.last = offset
            if lane.waiting or lane.retried:
                self._admit_later(lane, incoming, found)
            else:
                found.append(incoming)
        if found:
            self._outage.over()
        return found

    def _admit_later(self, lane: Lane, incoming: KafkaIncoming, found: list[KafkaIncoming]) -> None:
        due = incoming.due if lane.retried else 0.0
        if due <= time.time() and not (lane.ordered and lane.waiting):
            found.append(incoming)
        else:
            self._wait(lane, incoming, due)

    def _wait(self, lane: Lane, incoming: KafkaIncoming, due: float) -> None:
        lane.wait(incoming, due)
        self._waiting.add(lane)

    def _again(self, room: int) -> list[KafkaIncoming]:
        """Messages whose time to be handed out again has come."""
        found: list[KafkaIncoming] = []
        if not self._waiting:
            return found
        now = time.time()
        with self._lock:
            for lane in list(self._waiting):
                while len(found) < room and (incoming := lane.due(now)) is not None:
                    found.append(incoming)
                self._pause(lane, self._blocked(lane))
                if not lane.waiting:
                    self._waiting.discard(lane)
        return found

    def _keep_alive(self, timeout: float) -> None:
        """The layer wants nothing. For a moment nothing need be done; then partitions pause and polling goes on."""
        if self._all_paused or time.monotonic() - self._polled_at > _IDLE_POLL or len(self._stash) > _STASH:
            self._pause_all(True)
        elif not self._asking():
            time.sleep(timeout)
            return
        self._polled_at = self._polled_at if self._asking() else time.monotonic()
        self._poll_aside(timeout)

    def _poll_aside(self, timeout: float) -> None:
        """Runs callbacks; a message that comes along waits for the next `receive`."""
        native = self._consumer.poll(timeout)
        if native is not None:
            self._stash.append(native)

    def _asking(self) -> bool:
        with self._lock:
            return any(lane.asked is not None for lane in self._lanes.values())

    def _pause_all(self, paused: bool) -> None:
        if self._all_paused != paused:
            with self._lock:
                self._all_paused = paused
                for lane in self._lanes.values():
                    self._pause(lane, self._blocked(lane))

    def _pause(self, lane: Lane, paused: bool) -> None:
        paused = paused or self._all_paused
        if lane.paused != paused:
            lane.paused = paused
            place = [TopicPartition(lane.native_topic, lane.partition)]
            (self._consumer.pause if paused else self._consumer.resume)(place)

    def _blocked(self, lane: Lane) -> bool:
        return bool(lane.waiting) if lane.ordered else len(lane.waiting) >= _LOOK_AHEAD

    def _message_error(self, native: Native, error: KafkaError) -> None:
        code = error.code()
        where = f"{native.topic()}/{native.partition()}"
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._failure = self._position_lost(where, error)
        elif code == KafkaError._MAX_POLL_EXCEEDED:
            pass  # on_lost follows
        elif code == KafkaError._PARTITION_EOF:
            pass
        elif error.fatal() or not error.retriable():
            self._end(translated(error, f"receiving from {where}"))

    @staticmethod
    def _position_lost(where: str, error: KafkaError) -> BrokerkitError:
        return PositionLost(
            f"the committed offset of {where} is no longer in the log ({error.str()}): messages were deleted by "
            "retention before they were received. Delete the subscription and declare it again with start="
        )

    # ------------------------------------------------------------ settling

    def settle(self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()) -> None:
        if self._over is not None:
            raise ConnectionLost(self._over)
        if rejects:
            raise NotSupported("Kafka has no dead letters of its own: the layer sends them")
        lost: list[Token] = []
        back: list[Token] = []
        with self._lock:
            by_number = self._by_number
            for token in acks:
                lane = by_number.get(token >> SHIFT)
                if lane is None or not lane.progress.settle(token & _MASK):
                    lost.append(token)
            held = {nack.token >> SHIFT for nack in nacks if not nack.unstarted}
            held |= {lane.base >> SHIFT for lane in self._waiting}
            for nack in nacks:
                self._give_back(nack, nack.token >> SHIFT in held, back, lost)
        self._report((back, End.SETTLED, ""), (lost, End.LOST, "it will be handed out again"))
        for nack in nacks:
            if nack.token >> SHIFT in held:
                self._hand_out_later(nack)

    def _give_back(self, nack: Nack, held: bool, back: list[Token], lost: list[Token]) -> None:
        """Unstarted and not behind another one, it is given back because the session ends: the next member starts
        there."""
        lane = self._by_number.get(nack.token >> SHIFT)
        offset = nack.token & _MASK
        if lane is None or offset not in lane.progress.open:
            lost.append(nack.token)
            return
        back.append(nack.token)
        if not held:
            lost += [lane.base + behind for behind in lane.progress.give_back(offset)]

    def _hand_out_later(self, nack: Nack) -> None:
        """The partition waits for this message; what the layer holds of it unstarted is taken back, so that it
        follows in order."""
        with self._lock:
            lane = self._by_number.get(nack.token >> SHIFT)
            incoming = lane.progress.open.get(nack.token & _MASK) if lane is not None else None
            if lane is None or incoming is None:
                return
            if nack.unstarted:
                self._wait(lane, incoming, 0.0)
                return
            incoming.count()
            self._wait(lane, incoming, time.time() + nack.delay)
            for token in self._events.take_back([lane.name]):
                later = lane.progress.open.get(token & _MASK)
                if later is not None and token >> SHIFT == lane.base >> SHIFT:
                    self._wait(lane, later, 0.0)

    def flush(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._answered() and not self._revoking and self._over is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._hurry = True
            if time.monotonic() - self._received_at > 0.2 and self._polling.acquire(blocking=False):
                self._quiet = True
                try:
                    self._commit_if_due()
                    self._poll_aside(min(left, SLICE))
                    self._strand()
                finally:
                    self._quiet = False
                    self._polling.release()
            else:
                with self._changed:
                    self._changed.wait(min(left, SLICE))

    def _strand(self) -> None:
        """Nobody receives any more: what is settled behind a message that waits will come again with it."""
        with self._lock:
            lost: list[Token] = []
            for lane in self._waiting:
                self._stranded = True
                lost += lane.strand()
        self._report((lost, End.LOST, "a message before it waits: it will be handed out again"))

    def _answered(self) -> bool:
        with self._lock:
            return not any(lane.asked is not None or lane.advance() for lane in self._lanes.values())

    def _report(self, *ends: tuple[Sequence[Token], End, str]) -> None:
        settlements = [Settlement(*end) for end in ends if end[0]]
        if settlements:
            self._settled(settlements)

    # ------------------------------------------------------------ commits

    def _commit_if_due(self) -> None:
        """Asks for what is new since the last commit, of every lane whose last one is answered."""
        now = time.monotonic()
        if not self._hurry and now - self._committed_at < COMMIT_EVERY:
            return
        self._hurry = False
        with self._lock:
            offsets = [self._mark(lane) for lane in self._lanes.values() if lane.asked is None and lane.advance()]
        if not offsets:
            return
        self._committed_at = now
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:  # asked again, for as long as the partitions are ours
            self._outage.seen(error.args[0])
            with self._lock:
                for place in offsets:
                    self._lanes[place.topic, place.partition].asked = None

    @staticmethod
    def _mark(lane: Lane) -> TopicPartition:
        lane.asked = lane.progress.place
        return TopicPartition(lane.native_topic, lane.partition, lane.asked, metadata=lane.metadata)

    def _on_commit(self, error: KafkaError | None, offsets: Sequence[TopicPartition]) -> None:
        """The answer; what failed is asked again with the next commit, for as long as the partition is ours."""
        done: list[Token] = []
        with self._changed:
            for place in offsets:
                lane = self._lanes.get((place.topic, place.partition))
                if lane is None or lane.asked != place.offset:
                    continue
                lane.asked = None
                if error is None and place.error is None:
                    done += lane.answered(place.offset)
            self._changed.notify_all()
        if done:
            self._outage.over()
            self._report((done, End.SETTLED, ""))

    def _commit_finally(self, lanes: Sequence[Lane], commit: Callable[..., Sequence[TopicPartition] | None]) -> None:
        """The last commit of lanes that are given up; `commit` returns None when there was no answer."""
        with self._lock:
            offsets = [self._mark(lane) for lane in lanes if lane.advance() or lane.asked is not None]
        answer = commit(offsets) if offsets else []
        taken = {(p.topic, p.partition): p for p in answer or ()}
        done: list[Token] = []
        lost: list[Token] = []
        unknown: list[Token] = []
        with self._lock:
            for lane in lanes:
                place = taken.get((lane.native_topic, lane.partition))
                if place is not None and place.error is None:
                    done += lane.answered(place.offset)
                (unknown if answer is None else lost).extend(lane.unsettled())
        self._report(
            (done, End.SETTLED, ""),
            (lost, End.LOST, "the partition went to another member before it could be committed"),
            (unknown, End.UNKNOWN, "the last commit was not answered"),
        )

    def _commit_now(self, offsets: list[TopicPartition]) -> Sequence[TopicPartition] | None:
        """Waits for the answer, at most `socket.timeout.ms`: callbacks may call the client from this thread only."""
        try:
            return self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            return [] if error.args[0].code() in _NOT_OURS else None

    def _commit_within(self, timeout: float) -> Callable[[list[TopicPartition]], Sequence[TopicPartition] | None]:
        """The same from a thread of its own, for a close that must not take longer than `timeout` seconds."""

        def commit(offsets: list[TopicPartition]) -> Sequence[TopicPartition] | None:
            answers: list[Sequence[TopicPartition] | None] = []
            thread = threading.Thread(
                target=lambda: answers.append(self._commit_now(offsets)), name="brokerkit kafka commit", daemon=True
            )
            thread.start()
            thread.join(timeout)
            return answers[0] if answers else None

        return commit

    # ------------------------------------------------------------ rebalances, inside poll

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        places: list[TopicPartition] = []
        try:
            places = self._assign(partitions)
        except BrokerkitError as error:
            self._failure = error
        except KafkaException as error:
            self._failure = translated(error.args[0], "looking up committed offsets")
        except Exception as error:  # a user's positions callback: it must not unwind through the client
            self._failure = ConfigurationError(f"positions raised {type(error).__name__}: {error}")
        (consumer.incremental_assign if self._cooperative else consumer.assign)(places)
        with self._lock:
            for lane in self._lanes.values():
                if self._all_paused and not lane.paused:
                    self._pause(lane, True)

    def _assign(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        starts = self._places(partitions)
        positions = [Position(topic, partition, start) for (topic, partition), (start, _) in starts.items()]
        moved = {} if self._quiet or not positions else self._events.assigned(positions)
        chosen = {(place.topic, place.lane): int(place.value) for place in moved.values()}
        places = []
        with self._lock:
            for (topic, partition), (start, metadata) in starts.items():
                start = chosen.get((topic, partition), start)
                self._number += 1
                lane = Lane(
                    self._number,
                    topic,
                    partition,
                    self._topics[topic],
                    self._topic_ids.get(topic, topic),
                    start,
                    metadata,
                )
                self._lanes[topic, partition] = lane
                self._by_number[self._number] = lane
                places.append(TopicPartition(topic, partition, start))
        return places

    def _places(self, partitions: Sequence[TopicPartition]) -> Mapping[tuple[str, int], tuple[int, str]]:
        """Committed offsets, by the connection that the member has anyway; the driver is asked about those without."""
        asked = [TopicPartition(place.topic, place.partition) for place in partitions]
        found = self._consumer.committed(asked, timeout=10.0) if asked else []
        fresh = [place for place in found if place.offset < 0]
        committed = {(p.topic, p.partition): (p.offset, p.metadata or "") for p in found if p.offset >= 0}
        return {**committed, **(self._starts(fresh, 10.0) if fresh else {})}

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        lanes = self._known(partitions)
        names = [lane.name for lane in lanes]
        if lanes:
            self._revoking = True
            try:
                if not self._quiet and not self._closed:
                    self._events.revoked(names, self._revoke_timeout)
                self._commit_finally(lanes, self._commit_now)
            finally:
                self._revoking = False
            if self._quiet:
                self._events.lost(names, "the partition went to another member")
            self._forget(lanes)
        if self._cooperative:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        lanes = self._known(partitions)
        if lanes:
            reason = "the group gave the partition to another member: this one was not heard of in time"
            if not self._closed:
                self._events.lost([lane.name for lane in lanes], reason)
            with self._lock:
                tokens = [token for lane in lanes for token in lane.unsettled()]
            self._forget(lanes)
            self._report((tokens, End.LOST, reason))
        if self._cooperative:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()

    def _known(self, partitions: Iterable[TopicPartition]) -> list[Lane]:
        with self._lock:
            found = [self._lanes.get((place.topic, place.partition)) for place in partitions]
            return [lane for lane in found if lane is not None]

    def _forget(self, lanes: Iterable[Lane]) -> None:
        with self._changed:
            for lane in lanes:
                del self._lanes[lane.native_topic, lane.partition]
                del self._by_number[lane.base >> SHIFT]
                self._waiting.discard(lane)
            self._changed.notify_all()

    # ------------------------------------------------------------ the session

    def close(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self._closed = True
        if not self._polling.acquire(timeout=max(1.0, timeout)):
            return
        try:
            with self._lock:
                lanes = list(self._lanes.values())
            if self._over is None and lanes:
                self._commit_finally(lanes, self._commit_within(max(0.1, deadline - time.monotonic())))
            self._forget(lanes)
            self._over = self._over or "the receiver was closed"
            # A member that cannot reach the broker takes long to leave; it is left behind in its thread.
            leaving = threading.Thread(target=self._consumer.close, name="brokerkit kafka leaving", daemon=True)
            leaving.start()
            leaving.join(max(0.2, deadline - time.monotonic()))
        finally:
            self._polling.release()

    def _check(self) -> None:
        if self._closed:
            raise Closed("the receiver was closed")
        if self._failure is not None:
            raise self._failure
        if self._over is not None:
            raise ConnectionLost(self._over)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._end(translated(error, "the consumer ended"))
        else:
            self._outage.seen(error)

    def _on_statistics(self, statistics: str) -> None:
        if self._forgotten.seen(statistics):
            self._end(ConnectionLost(Forgotten.REASON))

    def _end(self, error: BrokerkitError) -> None:
        """The session is over: what is not committed ends unknown, and the layer opens another."""
        if self._over is not None:
            return
        with self._changed:
            self._over = str(error)
            tokens = [token for lane in self._lanes.values() for token in lane.unsettled()]
            self._changed.notify_all()
        self._report((tokens, End.UNKNOWN, self._over))
        self._events.disconnected(self._over)

    def _probe(self) -> None:
        try:
            self._consumer.list_topics(next(iter(self._topics)), timeout=0.5)
        except KafkaException:
            return
        self._outage.over()
