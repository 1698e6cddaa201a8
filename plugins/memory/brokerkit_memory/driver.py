"""The in-process driver: the contract at its plainest, for unit tests and as the reference to read first.

One `Store` per `memory://name`, shared by every connection of the process. A topic is a list that is never
trimmed, so that positions can be chosen; a subscription is a queue of places in it. A delivery lasts as long as
its session. Nothing survives the process.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from brokerkit.driver import (
    Capabilities,
    Cause,
    Confirmed,
    Driver,
    End,
    Incoming,
    Nack,
    Outcome,
    Outcomes,
    Position,
    Receiver,
    ReceiverEvents,
    Refused,
    Reject,
    Sender,
    SenderEvents,
    Settled,
    Settlement,
    Subscription,
    Token,
    Traits,
    Transactor,
)
from brokerkit.errors import Closed, ConfigurationError, ConnectionLost, NotFound
from brokerkit.guarantees import Claim, Claims, FailurePoint, Guarantee, Likelihood, Properties
from brokerkit.message import Fields, Headers, IdSource, Message, stamped

LANE = 0


@dataclass
class _Queue:
    """A subscription: what is ready, when, and how often each place was handed out."""

    settings: Subscription
    ready: list[tuple[float, int]] = field(default_factory=list)
    attempts: dict[int, int] = field(default_factory=dict)
    held: dict[int, object] = field(default_factory=dict)

    def put(self, place: int, delay: float = 0.0) -> None:
        heapq.heappush(self.ready, (time.monotonic() + delay if delay else 0.0, place))

    def take(self, most: int, holder: object) -> list[int]:
        taken: list[int] = []
        now = time.monotonic()
        while self.ready and len(taken) < most and self.ready[0][0] <= now:
            place = heapq.heappop(self.ready)[1]
            self.held[place] = holder
            self.attempts[place] = self.attempts.get(place, 0) + 1
            taken.append(place)
        return taken


@dataclass
class _Topic:
    log: list[Message] = field(default_factory=list)
    delays: dict[int, float] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    queues: dict[str, _Queue] = field(default_factory=dict)


class Store:
    """What all connections to one `memory://name` share."""

    _all: ClassVar[dict[str, Store]] = {}
    _guard = threading.Lock()

    def __init__(self) -> None:
        self.topics: dict[str, _Topic] = {}
        self.changed = threading.Condition(threading.RLock())

    @classmethod
    def named(cls, name: str) -> Store:
        with cls._guard:
            return cls._all.setdefault(name, Store())

    def topic(self, name: str) -> _Topic:
        if name not in self.topics:
            raise NotFound(f"topic {name!r} does not exist: declare it first")
        return self.topics[name]

    def queue(self, topic: str, subscription: str) -> _Queue:
        queues = self.topic(topic).queues
        if subscription not in queues:
            raise NotFound(f"topic {topic!r} has no subscription {subscription!r}: declare it first")
        return queues[subscription]

    def append(self, name: str, message: Message, delay: float = 0.0, only: str | None = None) -> int:
        topic = self.topic(name)
        topic.log.append(message)
        place = len(topic.log) - 1
        for subscription, queue in topic.queues.items():
            if only is None or only == subscription:
                queue.put(place, delay)
        self.changed.notify_all()
        return place


class _Received(Incoming):
    __slots__ = ("attempt", "native", "place", "token", "topic")

    lane = LANE
    native: Message

    def __init__(self, topic: str, place: int, message: Message, attempt: int) -> None:
        self.token = (topic, place)
        self.topic = topic
        self.place = place
        self.native = message
        self.attempt = attempt

    @property
    def body(self) -> bytes | None:  # type: ignore[override]
        return self.native.body

    @property
    def id(self) -> str:  # type: ignore[override]
        return self.native.id

    @property
    def id_source(self) -> IdSource:  # type: ignore[override]
        return self.native.id_source

    @property
    def key(self) -> str | None:  # type: ignore[override]
        return self.native.key

    @property
    def all_headers(self) -> Headers:  # type: ignore[override]
        return self.native.headers

    @property
    def content_type(self) -> str | None:  # type: ignore[override]
        return self.native.content_type

    @property
    def published_at(self) -> int:  # type: ignore[override]
        return self.native.published_at

    @property
    def position(self) -> Position:  # type: ignore[override]
        return Position(self.topic, LANE, self.place)

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.native.body or b"")


class _Sender(Sender):
    def __init__(self, store: Store, topic: str, guarantee: Guarantee, outcomes: Outcomes, only: str | None) -> None:
        self._store = store
        self._topic = topic
        self._guarantee = guarantee
        self._outcomes = outcomes
        self._only = only
        self._next = 0
        self._open = True

    def send(self, messages: Sequence[Message], delay: float = 0.0) -> int:
        with self._store.changed:
            if not self._open:
                raise ConnectionLost("the sender is closed")
            outcomes = [self._one(number, message, delay) for number, message in enumerate(messages, self._next)]
            self._next += len(messages)
        if self._guarantee is Guarantee.AT_MOST_ONCE:
            outcomes = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        self._outcomes(outcomes)
        return len(messages)

    def _one(self, number: int, message: Message, delay: float) -> Outcome:
        topic = self._store.topics.get(self._topic)
        if topic is None:
            return Refused(number, number, Cause.TOPIC_MISSING, f"topic {self._topic!r} does not exist")
        if not topic.queues:
            return Refused(number, number, Cause.UNROUTABLE, f"topic {self._topic!r} has no subscription")
        if self._guarantee is Guarantee.EXACTLY_ONCE and message.id in topic.ids:
            place = topic.ids[message.id]
        else:
            place = self._store.append(self._topic, message, delay, self._only)
            topic.ids[message.id] = place
        return Confirmed(number, number, [Position(self._topic, LANE, place)])

    def close(self, timeout: float) -> None:
        self._open = False


class _Holder:
    """What a receiver and a transactor share: taking messages of several topics, and giving them back."""

    def __init__(self, store: Store, topics: Sequence[str], subscription: str) -> None:
        self.store = store
        self.queues = {topic: store.queue(topic, subscription) for topic in topics}
        self.open = True

    def receive(self, most: int, timeout: float) -> list[_Received]:
        deadline = time.monotonic() + timeout
        with self.store.changed:
            while True:
                if not self.open:
                    raise Closed("the receiver is closed")
                taken = self._take(most)
                left = deadline - time.monotonic()
                if taken or left <= 0:
                    return taken
                self.store.changed.wait(min(left, 0.02))

    def _take(self, most: int) -> list[_Received]:
        taken: list[_Received] = []
        for topic, queue in self.queues.items():
            log = self.store.topic(topic).log
            taken += [
                _Received(topic, place, log[place], queue.attempts[place])
                for place in queue.take(most - len(taken), self)
            ]
        return taken

    def release(self, token: Token, delay: float = 0.0, unstarted: bool = False) -> None:
        topic, place = token
        queue = self.queues[topic]
        if self.drop(token):
            if unstarted:
                queue.attempts[place] -= 1
            queue.put(place, delay)

    def drop(self, token: Token) -> bool:
        topic, place = token
        held = self.queues[topic].held
        if held.get(place) is not self:
            return False
        del held[place]
        return True

    def reject(self, reject: Reject) -> None:
        topic, place = reject.token
        queue = self.queues[topic]
        message = self.store.topic(topic).log[place]
        headers = {**message.headers, "brokerkit-dead-reason": reject.reason, "brokerkit-dead-topic": topic}
        if queue.settings.dead_letter is not None:
            self.store.append(queue.settings.dead_letter, message._replace(headers=headers))
        self.drop(reject.token)

    def close(self) -> None:
        with self.store.changed:
            self.open = False
            for topic, queue in self.queues.items():
                for place in [place for place, holder in queue.held.items() if holder is self]:
                    self.release((topic, place), unstarted=True)
            self.store.changed.notify_all()


class _Receiver(Receiver):
    def __init__(self, holder: _Holder, settled: Settled, events: ReceiverEvents, attempts: Subscription) -> None:
        self._holder = holder
        self._settled = settled
        self._events = events
        self._announced = False
        self.traits = Traits(dead_letters="native", attempts=attempts.attempts, dead_letter=attempts.dead_letter)

    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        if not self._announced:
            self._announced = True
            self._start()
        return self._holder.receive(max_messages, timeout)

    def _start(self) -> None:
        """Tells where each topic goes on, and starts elsewhere when asked to."""
        positions = [
            Position(topic, LANE, min((place for _, place in queue.ready), default=len(self._log(topic))))
            for topic, queue in self._holder.queues.items()
        ]
        with self._holder.store.changed:
            for position in self._events.assigned(positions).values():
                queue = self._holder.queues[position.topic]
                queue.ready = [(0.0, place) for place in range(int(position.value), len(self._log(position.topic)))]

    def _log(self, topic: str) -> list[Message]:
        return self._holder.store.topic(topic).log

    def settle(self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()) -> None:
        holder = self._holder
        with holder.store.changed:
            kept = [token for token in acks if holder.drop(token)]
            for token, delay, unstarted in nacks:
                holder.release(token, delay, unstarted)
            for reject in rejects:
                holder.reject(reject)
            holder.store.changed.notify_all()
        lost = set(acks) - set(kept)
        self._settled(
            [
                Settlement(
                    [*kept, *(nack.token for nack in nacks), *(reject.token for reject in rejects)], End.SETTLED
                ),
                *([Settlement(list(lost), End.LOST, "the session was over")] if lost else ()),
            ]
        )

    def close(self, timeout: float) -> None:
        self._holder.close()


class _Transactor(Transactor):
    def __init__(self, holder: _Holder) -> None:
        self._holder = holder
        self._received: list[Token] = []
        self._sends: list[tuple[str, Message]] = []
        self._acks: Sequence[Token] = ()
        self._rejects: Sequence[Reject] = ()

    def begin(self) -> None:
        self._received, self._sends, self._acks, self._rejects = [], [], (), ()

    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        incoming = self._holder.receive(max_messages, timeout)
        self._received += [raw.token for raw in incoming]
        return incoming

    def send(self, topic: str, fields: Fields) -> None:
        self._holder.store.topic(topic)
        self._sends.append((topic, stamped(fields)))

    def settle(self, acks: Sequence[Token], rejects: Sequence[tuple[Incoming, str]] = ()) -> None:
        for topic in {incoming.topic for incoming, _ in rejects}:
            if self._holder.queues[topic].settings.dead_letter is None:
                raise ConfigurationError(
                    f"this subscription of {topic!r} has no dead letters: declare it with attempts= or dead_letter="
                )
        self._acks, self._rejects = acks, [Reject(incoming.token, reason) for incoming, reason in rejects]

    def commit(self) -> None:
        with self._holder.store.changed:
            for topic, message in self._sends:
                self._holder.store.append(topic, message)
            for token in self._acks:
                self._holder.drop(token)
            for reject in self._rejects:
                self._holder.reject(reject)
            self._give_back()

    def abort(self) -> None:
        self._give_back()

    def _give_back(self) -> None:
        with self._holder.store.changed:
            for token in self._received:
                self._holder.release(token)
            self._holder.store.changed.notify_all()
        self.begin()

    def close(self, timeout: float) -> None:
        self._holder.close()


class MemoryDriver(Driver):
    """See the module."""

    blocking = False
    capabilities = Capabilities(
        producer_guarantees=frozenset(Guarantee),
        consumer_guarantees=frozenset({Guarantee.AT_MOST_ONCE, Guarantee.AT_LEAST_ONCE}),
        delayed_send=True,
        transactions=True,
        positions=True,
    )

    def __init__(self, name: str, client: Mapping[str, str]) -> None:
        if client:
            raise ConfigurationError(f"memory:// has no client library, so no option client.{next(iter(client))}")
        self._name = name
        self._store = Store.named(name)

    def claims(self, producer: Guarantee, consumer: Guarantee) -> Claims:
        """In one process nothing fails but the process, and then everything is gone."""
        gone = Claim(Likelihood.EXPECTED, condition="kept in the memory of one process")
        source = "brokerkit_memory/driver.py"
        points: dict[str, Claim] = {
            point: Claim(source=source) for point in (FailurePoint.NONE, FailurePoint.CLEAN_SHUTDOWN)
        }
        points[FailurePoint.POISON] = Claim(source=source)
        points[FailurePoint.BROKER_KILLED] = gone
        return Claims(points, Properties(order="single_consumer", dedup="message_id", durable="none"))

    def declare(self, topic: str, subscriptions: Sequence[Subscription], native: Mapping[str, Any]) -> None:
        if native:
            raise ConfigurationError("memory:// has no native settings")
        with self._store.changed:
            declared = self._store.topics.setdefault(topic, _Topic())
            for subscription in subscriptions:
                if subscription.dead_letter is not None:
                    self.declare(subscription.dead_letter, [Subscription("dead")], {})
                queue = declared.queues.get(subscription.name)
                if queue is None:
                    queue = declared.queues[subscription.name] = _Queue(subscription)
                    if subscription.start == "earliest":
                        for place in range(len(declared.log)):
                            queue.put(place)
                elif queue.settings != subscription:
                    raise ConfigurationError(
                        f"subscription {subscription.name!r} of {topic!r} is there with other settings: "
                        f"{_difference(queue.settings, subscription)}. Delete it first, or declare it as it is"
                    )

    def delete(self, topic: str, subscription: str | None) -> None:
        with self._store.changed:
            if subscription is None:
                self._store.topics.pop(topic, None)
            elif topic in self._store.topics:
                self._store.topics[topic].queues.pop(subscription, None)

    def depth(self, topic: str, subscription: str) -> int:
        with self._store.changed:
            queue = self._store.queue(topic, subscription)
            return len(queue.ready) + len(queue.held)

    def describe(self) -> Mapping[str, str]:
        return {"product": "brokerkit memory", "name": self._name}

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
        self._store.topic(topic)
        return _Sender(self._store, topic, guarantee, outcomes, subscription)

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
        holder = _Holder(self._store, topics, subscription.name)
        return _Receiver(holder, settled, events, holder.queues[topics[0]].settings)

    def transactor(
        self, topics: Sequence[str], subscription: Subscription, *, instance: str | None, timeout: float = 10.0
    ) -> Transactor:
        return _Transactor(_Holder(self._store, topics, subscription.name))

    def close(self, timeout: float) -> None:
        """Nothing to end: the store belongs to the process."""


def _difference(have: Subscription, want: Subscription) -> str:
    fields = ("start", "attempts", "dead_letter", "retry", "handling_seconds")
    return ", ".join(
        f"{name} is {getattr(have, name)!r}, asked for {getattr(want, name)!r}"
        for name in fields
        if getattr(have, name) != getattr(want, name)
    )
