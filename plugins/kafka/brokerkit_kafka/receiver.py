"""A member of a consumer group: fetching, rebalances, and commits of contiguous prefixes."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

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
from brokerkit_kafka.errors import fetching, made, translated
from brokerkit_kafka.incoming import KafkaIncoming
from brokerkit_kafka.lane import SHIFT, Lane, admit, settle
from brokerkit_kafka.outage import Forgotten, Outage

T = TypeVar("T")

COMMIT_EVERY = 0.1
"""Seconds between two commits at most, while there is something to commit."""
_MANY = 5000
"""Acks after which a commit is due at once: all that is settled and not committed is held in memory."""
SLICE = 0.02
"""Seconds of one poll: what other threads have noted down waits no longer."""
_IDLE = 0.5
"""Seconds without room before partitions are paused: pausing throws away what librdkafka has fetched ahead."""
_STASH = 100
"""Messages taken from librdkafka aside while the layer wants none, before partitions are paused."""

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
    """Commits are asynchronous, one at a time, every `COMMIT_EVERY` seconds or `_MANY` acks, always the contiguous
    prefix of a partition that is assigned at that moment. librdkafka's callbacks (assignment, commit answers, errors)
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
        """`topics`: each topic to read, retry topics included, with the one that its messages were sent to."""
        self.traits = traits
        self._topics = topics
        self._topic_ids = topic_ids
        self._starts = starts
        self._settled = settled
        self._events = events
        self._revoke_timeout = revoke_timeout
        self._lock = threading.RLock()
        self._polling = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._by_number: dict[int, Lane] = {}
        self._numbers = itertools.count(1)
        self._stash: list[Native] = []
        self._wanted_at = self._received_at = time.monotonic()
        self._committed_at = 0.0
        self._acked = 0
        self._hurry = False
        self._revoking = False
        self._alone = False
        self._failure: BrokerkitError | None = None
        """What `receive` raises from now on."""
        self._over: str | None = None
        """Why the session has ended."""
        self._outage = Outage(events)
        self._forgotten = Forgotten()
        cooperative = (
            config["group.protocol"] == "consumer" or config["partition.assignment.strategy"] == "cooperative-sticky"
        )
        callbacks = {"error_cb": self._outage.seen, "stats_cb": self._on_statistics, "on_commit": self._on_commit}
        self._consumer = made(Consumer, {**config, **callbacks})
        self._take = self._consumer.incremental_assign if cooperative else self._consumer.assign
        self._consumer.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    # ------------------------------------------------------------ receiving

    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        deadline = time.monotonic() + timeout
        self._check()
        with self._polling:
            while True:
                self._received_at = time.monotonic()
                self._commit_if_due()
                wait = max(0.0, min(deadline - self._received_at, SLICE))
                found: list[KafkaIncoming] = []
                if max_messages:
                    found = self._again(max_messages)
                    found += self._fetch(max_messages - len(found), 0.0 if found else wait)
                else:
                    self._keep_alive(wait)
                self._check()
                if found or time.monotonic() >= deadline:
                    return cast("Sequence[Incoming]", found)

    def _again(self, room: int) -> list[KafkaIncoming]:
        """Messages whose time to be handed out again has come."""
        self._wanted_at = time.monotonic()
        found: list[KafkaIncoming] = []
        now = time.time()
        with self._lock:
            for lane in self._lanes.values():
                while len(found) < room and (incoming := lane.due(now)) is not None:
                    found.append(incoming)
                self._pause(lane, lane.full())
        return found

    def _fetch(self, room: int, wait: float) -> list[KafkaIncoming]:
        """What is fetched lies in the stash first, from which a rebalance takes what is not ours any more."""
        self._poll_aside(0.0 if self._stash else wait)
        if not self._stash:
            if self._outage.probe_due():
                self._probe()
            return []
        if len(self._stash) < room:
            more = self._served(lambda: self._consumer.consume(room - len(self._stash), 0))
            self._stash += more or []  # looked at only now: a rebalance may have changed it
        with self._lock:
            batch, self._stash = self._stash[:room], self._stash[room:]
            return self._admit(batch)

    def _admit(self, batch: Sequence[Native]) -> list[KafkaIncoming]:
        """What of a fetched batch is ours and may be handed out now."""
        failed: list[Native] = []
        found = admit(batch, self._lanes, failed)
        for native in failed:
            self._fail(fetching(f"{native.topic()}/{native.partition()}", native.error()))  # type: ignore[arg-type]
        if found:
            self._outage.over()
        return found

    def _keep_alive(self, wait: float) -> None:
        """The layer wants nothing. For a moment nothing need be done; then partitions pause and polling goes on."""
        if time.monotonic() - self._wanted_at > _IDLE or len(self._stash) > _STASH:
            with self._lock:
                for lane in self._lanes.values():
                    self._pause(lane, True)
        elif not self._asking():
            time.sleep(wait)
            return
        self._poll_aside(wait)

    def _poll_aside(self, wait: float) -> None:
        """Runs callbacks; a message that comes along is kept for the next batch."""
        native = self._served(lambda: self._consumer.poll(wait))
        if native is not None:
            self._stash.append(native)

    def _served(self, call: Callable[[], T]) -> T | None:
        """A fatal error does not come to a callback: the client raises it, out of the call that served it."""
        try:
            return call()
        except KafkaException as error:
            self._fail(translated(error.args[0], "the consumer ended"))
            return None

    def _pause(self, lane: Lane, paused: bool) -> None:
        if lane.paused != paused:
            lane.paused = paused
            place = [TopicPartition(lane.native_topic, lane.partition)]
            (self._consumer.pause if paused else self._consumer.resume)(place)

    def _probe(self) -> None:
        try:
            self._consumer.list_topics(next(iter(self._topics)), timeout=0.5)
        except KafkaException:
            return
        self._outage.over()

    # ------------------------------------------------------------ settling

    def settle(self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()) -> None:
        """A message given back by a handler waits here for its turn, and so does what is behind it. One given back
        unstarted, with none before it waiting, means that the session ends: the next member starts there."""
        if self._over is not None:
            raise ConnectionLost(self._over)
        if rejects:
            raise NotSupported("Kafka has no dead letters of its own: the layer sends them")
        back: list[Token] = []
        lost: list[Token] = []
        with self._lock:
            by_number = self._by_number
            self._acked += len(acks)
            lost += settle(acks, by_number)
            waiting = {nack.token >> SHIFT for nack in nacks if not nack.unstarted}
            waiting |= {number for number, lane in by_number.items() if lane.waiting}
            for nack in nacks:
                if self._open(nack.token) is None:
                    lost.append(nack.token)
                    continue
                back.append(nack.token)
                if nack.token >> SHIFT not in waiting:
                    lost += by_number[nack.token >> SHIFT].give_back(nack.token)
        self._report((back, End.SETTLED, ""), (lost, End.LOST, "it will be handed out again"))
        for nack in nacks:
            if nack.token >> SHIFT in waiting:
                self._hand_out_later(nack)

    def _hand_out_later(self, nack: Nack) -> None:
        """The partition waits for this message; what the layer holds of it unstarted is taken back, so that it
        follows in order."""
        with self._lock:
            incoming = self._open(nack.token)
            if incoming is None:
                return
            lane = self._by_number[nack.token >> SHIFT]
            if nack.unstarted:
                lane.wait(incoming, 0.0)
                return
            incoming.count()
            lane.wait(incoming, time.time() + nack.delay)
            for token in self._events.take_back([lane.name]):
                later = self._open(token)
                if later is not None:
                    lane.wait(later, 0.0)

    def _open(self, token: Token) -> KafkaIncoming | None:
        """What was handed out as `token` and is not settled."""
        lane = self._by_number.get(token >> SHIFT)
        return lane.progress.open.get(token) if lane is not None else None

    def flush(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._answered() and not self._revoking and self._over is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._hurry = True
            if time.monotonic() - self._received_at > 0.2 and self._polling.acquire(blocking=False):
                self._alone = True
                try:
                    self._commit_if_due()
                    self._poll_aside(min(left, SLICE))
                    self._strand()
                finally:
                    self._alone = False
                    self._polling.release()
            else:
                with self._changed:
                    self._changed.wait(min(left, SLICE))

    def _strand(self) -> None:
        """Nobody receives any more: what is settled behind a message that waits will come again with it."""
        lost: list[Token] = []
        with self._lock:
            for lane in self._lanes.values():
                if lane.waiting:
                    lost += lane.give_back(lane.base + min(incoming.offset for *_, incoming in lane.waiting))
                    self._failure = ConnectionLost("the receiver was flushed while nobody received")
        self._report((lost, End.LOST, "a message before it waits: it will be handed out again"))

    def _answered(self) -> bool:
        with self._lock:
            return not any(lane.asked is not None or lane.advance() for lane in self._lanes.values())

    def _asking(self) -> bool:
        with self._lock:
            return any(lane.asked is not None for lane in self._lanes.values())

    def _report(self, *ends: tuple[Sequence[Token], End, str]) -> None:
        settlements = [Settlement(*end) for end in ends if end[0]]
        if settlements:
            self._settled(settlements)

    # ------------------------------------------------------------ commits

    def _commit_if_due(self) -> None:
        """Asks for what is new since the last commit, of every lane whose last one is answered."""
        now = time.monotonic()
        if not self._hurry and self._acked < _MANY and now - self._committed_at < COMMIT_EVERY:
            return
        self._hurry = False
        self._acked = 0
        with self._lock:
            offsets = [self._mark(lane) for lane in self._lanes.values() if lane.asked is None and lane.advance()]
        if not offsets:
            return
        self._committed_at = now
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._outage.seen(error.args[0])
            self._on_commit(error.args[0], offsets)

    @staticmethod
    def _mark(lane: Lane) -> TopicPartition:
        lane.asked = lane.reached()
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

    def _give_up(self, lanes: Sequence[Lane]) -> None:
        """The last commit of these lanes. Waits for the answer, at most `socket.timeout.ms`."""
        with self._lock:
            offsets = [self._mark(lane) for lane in lanes if lane.advance() or lane.asked is not None]
        answer: Sequence[TopicPartition] = []
        end, why = End.LOST, "the partition went to another member before it could be committed"
        try:
            answer = self._consumer.commit(offsets=offsets, asynchronous=False) if offsets else []
        except KafkaException as error:
            if error.args[0].code() not in _NOT_OURS:
                end, why = End.UNKNOWN, "the last commit was not answered"
        taken = {(place.topic, place.partition): place.offset for place in answer if place.error is None}
        done: list[Token] = []
        with self._lock:
            for place, offset in taken.items():
                if place in self._lanes:
                    done += self._lanes[place].answered(offset)
        self._report((done, End.SETTLED, ""))
        self._drop(lanes, end, why)

    def _drop(self, lanes: Iterable[Lane], end: End, why: str) -> None:
        """These lanes are not ours any more: what no commit covers ends so."""
        tokens: list[Token] = []
        with self._changed:
            for lane in lanes:
                if self._by_number.pop(lane.base >> SHIFT, None) is not None:
                    del self._lanes[lane.native_topic, lane.partition]
                    tokens += lane.unsettled()
            self._stash = [native for native in self._stash if self._is_ours(native)]
            self._changed.notify_all()
        self._report((tokens, end, why))

    def _is_ours(self, native: Native) -> bool:
        return native.error() is not None or (native.topic(), native.partition()) in self._lanes

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
        self._take(places)
        if places:
            consumer.resume(places)  # librdkafka keeps a partition paused that comes back

    def _assign(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        starts = self._places(partitions)
        positions = [
            Position(topic, partition, start, self._topic_ids.get(topic, ""))
            for (topic, partition), (start, _) in starts.items()
        ]
        moved = self._events.assigned(positions) if positions else {}
        chosen = {(place.topic, place.lane): int(place.value) for place in moved.values()}
        places = []
        with self._lock:
            for (topic, partition), (start, metadata) in starts.items():
                start = chosen.get((topic, partition), start)
                number = next(self._numbers)
                topic_id = self._topic_ids.get(topic, topic)
                lane = Lane(number, topic, partition, self._topics[topic], topic_id, start, metadata)
                self._lanes[topic, partition] = self._by_number[number] = lane
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
        """Afterwards the client gives the partitions up by itself; so it does in `_on_lost`."""
        lanes = self._known(partitions)
        names = [lane.name for lane in lanes]
        if lanes:
            self._revoking = True
            try:
                if self._alone:  # the layer is inside `flush` and cannot settle
                    self._events.lost(names, "the partition went to another member")
                else:
                    self._events.revoked(names, self._revoke_timeout)
                self._give_up(lanes)
            finally:
                self._revoking = False

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        lanes = self._known(partitions)
        if lanes:
            reason = "the group gave the partition to another member: this one was not heard of in time"
            self._events.lost([lane.name for lane in lanes], reason)
            self._drop(lanes, End.LOST, reason)

    def _known(self, partitions: Iterable[TopicPartition]) -> list[Lane]:
        with self._lock:
            found = [self._lanes.get((place.topic, place.partition)) for place in partitions]
            return [lane for lane in found if lane is not None]

    # ------------------------------------------------------------ the session

    def close(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self._failure = Closed("the receiver was closed")
        if not self._polling.acquire(timeout=max(1.0, timeout)):
            return
        try:
            self._over = self._over or "the receiver was closed"
            # A member that cannot reach the broker takes long to leave; it is left behind in its thread.
            leaving = threading.Thread(target=self._leave, name="brokerkit kafka leaving", daemon=True)
            leaving.start()
            leaving.join(max(0.2, deadline - time.monotonic()))
            self._drop(list(self._lanes.values()), End.UNKNOWN, "the last commit was not answered")
        finally:
            self._polling.release()

    def _leave(self) -> None:
        self._give_up(list(self._lanes.values()))
        self._consumer.close()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _on_statistics(self, statistics: str) -> None:
        if self._forgotten.seen(statistics):
            self._fail(ConnectionLost(Forgotten.REASON))

    def _fail(self, error: BrokerkitError | None) -> None:
        """A place that is lost is for the user to mend. With any other error the session is over: what is not
        committed ends unknown, and the layer opens another."""
        if isinstance(error, PositionLost):
            self._failure = error
        elif error is not None and self._over is None:
            self._over = str(error)
            self._failure = ConnectionLost(self._over)
            self._drop(list(self._lanes.values()), End.UNKNOWN, self._over)
            self._events.disconnected(self._over)
