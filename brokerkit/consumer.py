"""Consumer: receiving, and settling what was received.

The portable half of a receive. A driver's Receiver moves batches; everything that is the same for every broker
is here: the bound in flight, the moment of the ack, attempts and dead letters, lease keeping, reconnects, close;
and in receiving.py, which each message passes: a delivery and its states.

Two threads a consumer. The pump calls `receive` continually, so that sessions stay alive under slow handlers,
and opens a new session when one ends. The settler passes settlements on in the batches that pile up while it
works, renews leases, and sends what is republished. Neither ever runs a user's handler.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from brokerkit import _fork
from brokerkit.driver import Driver, Nack, Position, Receiver, Reject, Subscription, Token
from brokerkit.errors import BrokerkitError, Closed, ConfigurationError, ConnectionLost, NotSupported, PositionLost
from brokerkit.events import EventKind, Reporter, backoffs, call
from brokerkit.guarantees import Guarantee
from brokerkit.leases import LeaseKeeper
from brokerkit.message import Headers
from brokerkit.producer import Producer, Receipt, checked_timeout
from brokerkit.receiving import Delivery as Delivery
from brokerkit.receiving import Lease as Lease
from brokerkit.receiving import Ledger, Link, take

_FETCH = 1000
"""The most that is asked of a receiver at once."""
_PLENTY = _FETCH
"""Deliveries that are ready and keep the pump from fetching more: what lies longer costs cache misses, and walks of the
cycle collector."""
_IDLE = 0.05
"""Seconds a session may go without a `receive` while nothing may be handed out."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CloseReport:
    """What a close did: messages given back, and settlements whose end is not known."""

    given_back: int = 0
    unanswered: int = 0


class _Session:
    """One receiver, with the ledger of its deliveries, and what it tells."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.ledger = Ledger(consumer._link, consumer._acked_first, consumer._on_end is not None)
        self.keeper: LeaseKeeper | None = None
        self.receiver: Receiver

    # ReceiverEvents

    def assigned(self, positions: Sequence[Position]) -> Mapping[Hashable, Position]:
        return self.consumer._assigned(positions)

    def revoked(self, lanes: Sequence[Hashable], timeout: float) -> None:
        self.consumer._revoked(self, lanes, timeout)

    def lost(self, lanes: Sequence[Hashable], reason: str) -> None:
        self.consumer._lost(self, lanes, reason)

    def take_back(self, lanes: Sequence[Hashable]) -> Sequence[Token]:
        return self.consumer._take_back(self, lanes)

    def lease_lost(self, tokens: Sequence[Token], reason: str) -> None:
        self.ledger.drop(tokens, reason)
        self.consumer._report(EventKind.LEASE_LOST, f"{len(tokens)} deliveries: {reason}")

    def disconnected(self, reason: str) -> None:
        self.consumer._disconnected(self, reason)

    def trouble(self, reason: str) -> None:
        self.consumer._report(EventKind.TROUBLE, reason)

    def recovered(self) -> None:
        self.consumer._report(EventKind.RECOVERED, "the broker answers again")


class Consumer:
    """Receives for one subscription under one guarantee. Thread-safe; a context manager, whose exit calls `close`.

    Iterate, or call `receive`. Several threads may take deliveries from one consumer.

    - `at_most_once`: acked, and the ack taken by the broker, before a delivery is handed over.
    - `at_least_once`: the handler acks when it is done; what is not acked is handed out again.
    """

    def __init__(
        self,
        driver: Driver,
        topics: Sequence[str],
        subscription: Subscription,
        guarantee: Guarantee,
        report: Reporter,
        *,
        prefetch: int = 500,
        prefetch_bytes: int = 64 * 1024 * 1024,
        positions: Callable[[Sequence[Position]], Mapping[Hashable, Position]] | None = None,
        max_lease: float = 3600.0,
        on_end: Callable[[Delivery], object] | None = None,
        open_timeout: float = 10.0,
    ) -> None:
        self.topics = tuple(topics)
        self.subscription = subscription.name
        self.guarantee = guarantee
        self._driver = driver
        self._declared = subscription
        self._reporter = report
        self._prefetch = prefetch
        self._prefetch_bytes = prefetch_bytes
        self._positions = positions
        self._max_lease = max_lease
        self._on_end = on_end
        self._open_timeout = open_timeout
        self._born = _fork.generation
        self._acked_first = guarantee is Guarantee.AT_MOST_ONCE
        self._stopping = False
        self._closed = False
        self._given_back = 0
        self._failure: BrokerkitError | None = None
        self._wake = threading.Event()
        self._link = Link(self, self._wake, self._born)
        self._settle_lock = threading.Lock()
        self._arrived = threading.Condition()
        self._changed = threading.Condition()
        self._ready: deque[Delivery] = deque()
        self._asking = 0
        """Threads that wait for a delivery."""
        self._news: deque[tuple[EventKind, str]] = deque()
        self._ended: deque[Delivery] = deque()
        self._producers: dict[tuple[str, bool], Producer] = {}
        self._session = self._open()
        self._pump = threading.Thread(target=self._run_pump, name=f"brokerkit pump {self.subscription}", daemon=True)
        self._settler = threading.Thread(
            target=self._run_settler, name=f"brokerkit settler {self.subscription}", daemon=True
        )
        self._pump.start()
        self._settler.start()

    # ------------------------------------------------------------ what users call

    @property
    def state(self) -> Literal["connected", "disconnected", "closed"]:
        """Whether there is a session with the broker now."""
        return "closed" if self._closed else "disconnected" if self._session.ledger.over else "connected"

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def held(self) -> int:
        """Deliveries that are this consumer's and not settled, those in its buffer included."""
        return len(self._session.ledger.outstanding)

    def receive(self, max_messages: int = 100, timeout: float = 1.0) -> list[Delivery]:
        """Up to `max_messages` deliveries as soon as there is one; empty after `timeout` seconds.

        Raises Closed, and what ended the consumer for good (PositionLost, AccessRefused, NotFound).
        """
        if max_messages < 1:
            raise ConfigurationError(f"max_messages must be at least 1, got {max_messages}")
        deadline = time.monotonic() + checked_timeout(timeout)
        if (keeper := self._session.keeper) is not None:
            keeper.overdue = False
        while True:
            self._check()
            taken = take(self._ready, max_messages)
            if self._acked_first and taken:
                taken = self._ack_first(taken)
            if taken:
                return taken
            with self._arrived:
                left = deadline - time.monotonic()
                if left <= 0 or self._stopping:
                    return []
                if not self._ready:
                    self._asking += 1
                    self._answered()  # there is room for the pump
                    self._arrived.wait(min(left, 0.5))
                    self._asking -= 1

    def __iter__(self) -> Iterator[Delivery]:
        """Deliveries for ever, until `stop` or `close`."""
        ready = self._ready
        batch = 100 if self._acked_first else 1
        while not self._stopping:
            if not self._acked_first:
                try:
                    delivery = ready.popleft()
                except IndexError:
                    pass
                else:
                    if delivery.state == "pending":  # not lost while it waited here
                        yield delivery
                    continue
            yield from self.receive(batch, timeout=1.0) if not self._stopping else ()

    def flush(self, timeout: float = 30.0) -> int:
        """Waits up to `timeout` seconds until every settlement so far has its end; returns how many have none."""
        self._check(stopped=True)
        return self._flush(checked_timeout(timeout))

    def stop(self) -> None:
        """Hands out no more: iteration ends, what was fetched and not started goes back at once. What is in hand
        can still be settled. Safe to call from a signal handler, and more than once."""
        self._stopping = True
        self._wake.set()

    def close(self, timeout: float = 30.0) -> CloseReport:
        """`stop`, gives back what is in hand and not settled, waits for the ends of settlements, ends the session.

        Idempotent. What could not be finished within `timeout` seconds is reported, here and as an event.
        """
        _fork.check(self._born, "consumer")
        deadline = time.monotonic() + checked_timeout(timeout)
        self.stop()
        with self._changed:
            if self._closed:
                return CloseReport()
            self._closed = self._link.closed = True
        with self._arrived:
            self._arrived.notify_all()
        self._pump.join(max(1.0, deadline - time.monotonic()))
        session = self._session
        self._give_back(session, list(session.ledger.outstanding.values()))
        unanswered = self._flush(max(0.0, deadline - time.monotonic()))
        self._wake.set()
        self._settler.join(max(1.0, deadline - time.monotonic()))
        for producer in self._producers.values():
            producer.close(max(0.0, deadline - time.monotonic()))
        session.ledger.over = True
        session.receiver.close(max(0.5, deadline - time.monotonic()))
        if unanswered:
            self._report(EventKind.UNFINISHED, f"closed with {unanswered} settlements whose end is not known")
        self._tell()
        self._ready.clear()
        session.ledger.watched.clear()
        self._link.consumer = None
        return CloseReport(self._given_back, unanswered)

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Consumer({', '.join(self.topics)}; {self.subscription}, {self.guarantee}, {self.state})"

    # ------------------------------------------------------------ handing over

    def _check(self, *, stopped: bool = False) -> None:
        _fork.check(self._born, "consumer")
        if self._failure is not None:
            raise self._failure
        if self._closed or (self._stopping and not stopped and not self._ready):
            raise Closed(f"the consumer of {self.subscription!r} is {'closed' if self._closed else 'stopped'}")

    def _ack_first(self, taken: list[Delivery]) -> list[Delivery]:
        """At most once: acks, waits until the broker has taken the ack, and keeps only what it has."""
        for delivery in taken:
            delivery._batch.ledger.ack_first(delivery)
        self._flush(self._open_timeout)
        kept = [delivery for delivery in taken if delivery.state in ("settled", "sent")]
        if len(kept) < len(taken):
            dropped = len(taken) - len(kept)
            self._report(EventKind.DROPPED, f"{dropped} deliveries at most once whose ack was not taken")
        return kept

    # ------------------------------------------------------------ settling

    def _session_of(self, delivery: Delivery) -> _Session:
        """Raises what says why `delivery` cannot be settled when its session has ended."""
        session = self._session
        if delivery._batch.ledger is not session.ledger:
            delivery._batch.ledger.explain(delivery)
        return session

    def _nack(self, delivery: Delivery, delay: float) -> None:
        if not delay >= 0:
            raise ConfigurationError(f"delay must not be negative, got {delay}")
        session = self._session_of(delivery)
        traits = session.receiver.traits
        limit = self._declared.attempts or traits.attempts
        how = traits.nack_delay if delay else traits.nack
        if how == "none":
            raise NotSupported("this broker cannot delay a nack: call nack() without a delay")
        if how == "native" and traits.longest_delay is not None and delay > traits.longest_delay:
            raise NotSupported(f"this broker delays a nack by {traits.longest_delay:g} s at most, got {delay:g}")
        attempt = delivery.attempt
        if limit is not None and attempt is not None and attempt >= limit and self._dead_letter(session) is not None:
            self._reject(delivery, f"attempt {attempt} of {limit} failed")
            return
        session.ledger.claim(delivery)
        if how == "native":
            behind = self._take_back(session, [delivery._raw.lane]) if traits.nack_blocks else []
            session.ledger.nacks += [
                Nack(delivery._token, delay),
                *(Nack(token, unstarted=True) for token in behind),
            ]
        else:
            headers: dict[str, str | bytes] = dict(delivery._raw.all_headers)
            headers["brokerkit-attempt"] = str((attempt or 1) + 1)
            headers.pop("brokerkit-due", None)
            if delay:
                headers["brokerkit-due"] = str(int((time.time() + delay) * 1000))
            self._send_on(session, delivery, delivery.topic, headers, delay, again=True)
        self._wake.set()

    def _reject(self, delivery: Delivery, reason: str) -> None:
        session = self._session_of(delivery)
        dead_letter = self._dead_letter(session)
        native = session.receiver.traits.dead_letters == "native"
        if dead_letter is None:
            raise NotSupported(
                f"subscription {self.subscription!r} has no dead letters: declare it with attempts= or dead_letter="
            )
        session.ledger.claim(delivery)
        if native:
            session.ledger.rejects.append(Reject(delivery._token, reason))
        else:
            headers: dict[str, str | bytes] = dict(delivery._raw.all_headers)
            headers["brokerkit-dead-reason"] = reason
            headers["brokerkit-dead-topic"] = delivery.topic
            headers["brokerkit-dead-subscription"] = self.subscription
            headers.pop("brokerkit-due", None)
            headers.pop("brokerkit-attempt", None)  # the dead letter's own attempts begin at 1
            self._send_on(session, delivery, dead_letter, headers, 0.0, again=False)
        self._report(EventKind.DEAD_LETTERED, f"message {delivery.id}: {reason}")
        self._wake.set()

    def _dead_letter(self, session: _Session) -> str | None:
        return self._declared.dead_letter or session.receiver.traits.dead_letter

    def _extend(self, delivery: Delivery, seconds: float | None) -> None:
        session = self._session_of(delivery)
        traits = session.receiver.traits
        if not traits.renewable or traits.lease_seconds is None:
            raise NotSupported(
                "leases of this broker cannot be renewed: declare(handling_seconds=…) sets how long a handler may take"
            )
        if delivery._token not in session.ledger.outstanding:
            session.ledger.explain(delivery)
        with self._settle_lock:
            session.receiver.extend([delivery._token], seconds or traits.lease_seconds)

    def _send_on(
        self, session: _Session, delivery: Delivery, topic: str, headers: Headers, delay: float, *, again: bool
    ) -> None:
        """A confirmed send of a copy, then the ack. When it does not end confirmed, the session is ended, so that
        the message is handed out again rather than forgotten."""
        raw = delivery._raw
        message = raw.message._replace(headers=headers, id_source="producer")

        def ended(receipt: Receipt) -> None:
            if receipt.state == "confirmed":
                session.ledger.acks.append(raw.token)
            else:
                self._disconnected(session, f"a copy of message {raw.id} could not be sent on: {receipt.error}")
            self._wake.set()

        self._copier(topic, again)._send_one(message, delay if self._driver.capabilities.delayed_send else 0.0, ended)

    def _copier(self, topic: str, again: bool) -> Producer:
        with self._changed:
            producer = self._producers.get((topic, again))
            if producer is None:
                producer = self._producers[topic, again] = Producer(
                    self._driver,
                    topic,
                    Guarantee.AT_LEAST_ONCE,
                    self._reporter,
                    subscription=self.subscription if again else None,
                    native=self._declared.native if again else None,
                )
            return producer

    def _give_back(self, session: _Session, deliveries: Sequence[Delivery]) -> None:
        """Nacks what nobody will settle any more."""
        self._given_back += session.ledger.give_back(deliveries)
        self._wake.set()

    def _give_back_ready(self) -> None:
        unstarted: list[Delivery] = []
        with contextlib.suppress(IndexError):
            while True:
                unstarted.append(self._ready.popleft())
        self._give_back(
            self._session, [delivery for delivery in unstarted if delivery._batch.ledger is self._session.ledger]
        )

    def _settle(self, session: _Session) -> None:
        """Passes on what has piled up. From the settler, or from the pump inside `revoked`."""
        with self._settle_lock:
            acks, nacks, rejects = _cut(session.ledger.acks), _cut(session.ledger.nacks), _cut(session.ledger.rejects)
            if not (acks or nacks or rejects) or session.ledger.over:
                return
            try:
                session.receiver.settle(acks, nacks, rejects)
            except ConnectionLost as error:
                self._disconnected(session, str(error))
        self._answered()  # there is room for the pump, whenever the broker answers

    def _run_settler(self) -> None:
        answered_at = time.monotonic()
        while True:
            session = self._session
            keeper = session.keeper
            self._wake.wait(min(0.5, keeper.due_in() if keeper is not None else 0.5))
            self._wake.clear()
            session = self._session
            keeper = session.keeper
            session.ledger.noted = False  # before they are taken: the next ack wakes again
            if self._stopping and self._ready:
                self._give_back_ready()
            self._settle(session)
            if keeper is not None and not session.ledger.over:
                self._renew(session, keeper)
            if session.ledger.sent and time.monotonic() - answered_at > 1.0:
                self._ask_for_answers(session, 5.0)
                answered_at = time.monotonic()
            self._tell()
            if (
                self._closed
                and not self._pump.is_alive()
                and not (session.ledger.acks or session.ledger.nacks or session.ledger.rejects)
            ):
                return

    def _renew(self, session: _Session, keeper: LeaseKeeper) -> None:
        with self._settle_lock:
            try:
                keeper.keep(session.ledger.outstanding)
            except ConnectionLost as error:
                self._disconnected(session, str(error))

    def _ask_for_answers(self, session: _Session, timeout: float) -> None:
        with self._settle_lock:
            try:
                if not session.ledger.over:
                    session.receiver.flush(timeout)
            except ConnectionLost as error:
                self._disconnected(session, str(error))

    def _flush(self, timeout: float) -> int:
        """Waits for the end of every settlement; returns how many have none."""
        deadline = time.monotonic() + timeout
        session = self._session
        while session.ledger.settling and not session.ledger.over:
            self._settle(session)
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._ask_for_answers(session, left)
            with self._changed:
                if session.ledger.settling and not session.ledger.over:
                    self._changed.wait(min(left, 0.02))
        return len(session.ledger.settling)

    def _answered(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # ------------------------------------------------------------ the pump: fetching, reconnecting

    def _open(self) -> _Session:
        session = _Session(self)
        session.receiver = self._driver.receiver(
            self.topics,
            self._declared,
            self.guarantee,
            session.ledger.settled,
            session,
            prefetch=self._prefetch,
            prefetch_bytes=self._prefetch_bytes,
            timeout=self._open_timeout,
        )
        traits = session.ledger.traits = session.receiver.traits
        if traits.renewable and traits.lease_seconds is not None:
            session.keeper = LeaseKeeper(traits.lease_seconds, self._max_lease, session.receiver.extend)
        return session

    def _run_pump(self) -> None:
        while not self._closed:
            session = self._session
            if session.ledger.over:
                if not self._reconnect():
                    return
                continue
            try:
                self._fetch(session)
            except ConnectionLost as error:
                self._disconnected(session, str(error))
            except Closed as error:
                if not self._closed:
                    self._fail(error)
                return
            except BrokerkitError as error:
                self._fail(error)
                return

    def _fetch(self, session: _Session) -> None:
        room = self._room(session)
        if room <= 0:
            with self._changed:
                if self._room(session) <= 0:
                    self._changed.wait(_IDLE)
            session.receiver.receive(0, 0.0)
            return
        incoming = session.receiver.receive(min(room, _FETCH), 0.1)
        if not incoming:
            return
        deliveries = session.ledger.take_in(incoming, time.monotonic())
        if self._stopping:
            self._give_back(session, deliveries)
            return
        with self._arrived:
            self._ready.extend(deliveries)
            self._arrived.notify_all()

    def _room(self, session: _Session) -> int:
        """How many more may be in flight. Refilled from half empty, in batches, or when nothing is ready; not while
        plenty is."""
        if self._stopping:
            return 0
        if session.keeper is not None and session.keeper.overdue and not self._asking:
            return 0  # a handler that hangs would get its own messages again, and keep them for another while
        held, ready = len(session.ledger.outstanding), len(self._ready)
        if ready >= _PLENTY or (ready and held > self._prefetch // 2):
            return 0
        if (
            held * session.ledger.largest >= self._prefetch_bytes
            and session.ledger.bytes_held() >= self._prefetch_bytes
        ):
            return 0
        return self._prefetch - held

    def _disconnected(self, session: _Session, reason: str) -> None:
        if session.ledger.over:
            return
        session.ledger.over = True
        session.ledger.drop(list(session.ledger.outstanding), reason)
        self._ended.extend(session.ledger.forget())
        if not self._closed:
            self._report(EventKind.DISCONNECTED, reason)
        self._answered()

    def _reconnect(self) -> bool:
        """Opens sessions until one holds; False when the consumer ended meanwhile, or for good."""
        with self._settle_lock:
            self._session.receiver.close(1.0)
        for wait in backoffs():
            if self._closed:
                return False
            try:
                self._session = self._open()
            except (ConnectionLost, TimeoutError):
                time.sleep(wait)
                continue
            except PositionLost as error:
                self._fail(error)
                return False
            except BrokerkitError as error:
                # A broker that has just come back may not know its queues or users yet.
                if self._grace_is_over():
                    self._fail(error)
                    return False
                time.sleep(wait)
                continue
            self._grace = None
            self._report(EventKind.RECONNECTED, f"receiving for {self.subscription!r} again")
            self._wake.set()
            return True
        return False

    _grace: float | None = None

    def _grace_is_over(self) -> bool:
        if self._grace is None:
            self._grace = time.monotonic() + 60.0
        return time.monotonic() > self._grace

    def _fail(self, error: BrokerkitError) -> None:
        self._failure = error
        self._report(EventKind.LOST, f"the consumer has ended: {error}")
        with self._arrived:
            self._arrived.notify_all()

    # ------------------------------------------------------------ assignment

    def _assigned(self, positions: Sequence[Position]) -> Mapping[Hashable, Position]:
        self._report(EventKind.ASSIGNED, ", ".join(map(str, positions)))
        return self._positions(positions) if self._positions is not None else {}

    def _revoked(self, session: _Session, lanes: Sequence[Hashable], timeout: float) -> None:
        """Gives unstarted deliveries of these lanes up, and waits for those in hand."""
        gone = set(lanes)
        unstarted = [delivery for delivery in list(self._ready) if delivery._raw.lane in gone]
        for delivery in unstarted:
            with contextlib.suppress(ValueError):
                self._ready.remove(delivery)
                session.ledger.drop([delivery._token], "its partition went to another consumer")
        deadline = time.monotonic() + timeout
        while True:
            self._settle(session)
            if not self._held(session, gone) or time.monotonic() >= deadline:
                break
            self._wake.clear()
            session.ledger.noted = False
            self._wake.wait(0.01)
        self._settle(session)
        session.ledger.drop(self._held(session, gone), "its partition went to another consumer")
        self._report(EventKind.REVOKED, ", ".join(map(str, lanes)))

    def _lost(self, session: _Session, lanes: Sequence[Hashable], reason: str) -> None:
        session.ledger.drop(self._held(session, set(lanes)), reason)
        self._report(EventKind.LOST, f"{', '.join(map(str, lanes))}: {reason}")

    def _take_back(self, session: _Session, lanes: Sequence[Hashable]) -> list[Token]:
        """Unstarted deliveries of these lanes, out of the buffer; they will come again, as new deliveries."""
        gone = set(lanes)
        tokens: list[Token] = []
        for delivery in [delivery for delivery in list(self._ready) if delivery._raw.lane in gone]:
            with contextlib.suppress(ValueError):
                self._ready.remove(delivery)
                tokens += session.ledger.drop([delivery._token], "a message before it comes again")
        return tokens

    def _held(self, session: _Session, lanes: set[Hashable]) -> list[Token]:
        return [token for token, held in list(session.ledger.outstanding.items()) if held._raw.lane in lanes]

    # ------------------------------------------------------------ telling

    def _report(self, kind: EventKind, detail: str) -> None:
        """For the settler to tell: users' callbacks never run under a lock or on a client's thread."""
        self._news.append((kind, detail))
        self._wake.set()

    def _tell(self) -> None:
        while self._news:
            self._reporter(*self._news.popleft())
        while self._ended:
            delivery = self._ended.popleft()
            if self._on_end is not None:
                call(self._on_end, delivery)


def _cut(items: list[_T]) -> list[_T]:
    """Takes what is in the list now; other threads may append meanwhile."""
    taken = items[:]
    del items[: len(taken)]
    return taken
