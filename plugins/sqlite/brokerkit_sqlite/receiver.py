"""Receiving and transactions: leases taken in one transaction, settled in another.

Nobody wakes a receiver in another process, so an idle one looks at `PRAGMA data_version`, which costs some
microseconds and changes with every commit of somebody else: after 1 ms at first, then less and less often, up to
20 ms.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

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
    Subscription,
    Token,
    Traits,
    Transactor,
)
from brokerkit.errors import (
    BrokerkitError,
    Closed,
    ConfigurationError,
    ConnectionLost,
    LeaseLost,
    NotFound,
    PositionLost,
)
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message, now_ms
from brokerkit_sqlite import log
from brokerkit_sqlite.rows import Received, position_of
from brokerkit_sqlite.schema import MASK, NEVER
from brokerkit_sqlite.session import Locked, Session
from brokerkit_sqlite.settings import SqliteSettings

_SHORTEST, _LONGEST, _GROWTH = 0.001, 0.020, 1.2


class _Leases:
    """What a receiver and a transactor share: the groups, the hand-overs, and the wait for something to come."""

    def __init__(
        self, session: Session, settings: SqliteSettings, topics: Sequence[str], subscription: Subscription
    ) -> None:
        self.session = session
        self.busy_timeout = settings.busy_timeout
        self.wake = threading.Event()
        self.stopped = False
        self.locked_since: float | None = None
        self._interval = _SHORTEST
        self._turn = 0
        with session.transaction() as db:
            groups = [log.find_group(db, topic, subscription, settings.lease_seconds) for topic in topics]
            (self.number,) = db.execute(
                "UPDATE facts SET value = value + 1 WHERE name = 'session' RETURNING value"
            ).fetchone()
        self.groups = {group.subscription: group for group in groups}
        self._count = 0

    def take(self, limits: log.Limits, timeout: float, counts: bool) -> Sequence[Received]:
        """Leases up to `limits`, as soon as there is something, or nothing after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            self.wake.clear()
            taken, due, version = self._look(limits, deadline, counts)
            if taken:
                self._interval = _SHORTEST
                return taken
            if not self.wait(deadline, due, version):
                return ()

    def wait(self, deadline: float, due: int, version: int | None) -> bool:
        """Until somebody committed, something is due, or `wake`; False when the deadline came first."""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            pause = min(left, self._interval)
            if due < NEVER:
                pause = min(pause, max(0.0005, (due - now_ms()) / 1000))
            if self.wake.wait(pause):
                return True
            self._interval = min(_LONGEST, self._interval * _GROWTH)
            if due <= now_ms():
                return True
            with self.session.lock:
                self.session.check()
                try:
                    if version is None or self.session.data_version() != version:
                        return True
                except Locked:
                    continue

    def _look(self, limits: log.Limits, deadline: float, counts: bool) -> tuple[list[Received], int, int | None]:
        """What could be leased; else when the next is due, and the data version that this was seen at."""
        session = self.session
        try:
            with session.lock:
                session.check()
                if self.stopped:
                    raise Closed("closed while it waited for messages")
                version = session.data_version()
                due = NEVER
                for group in self._in_turn():
                    next_due = log.next_due(session.connection, group.subscription)
                    if next_due is None:
                        raise ConnectionLost(f"subscription {group.name!r} of topic {group.topic!r} was deleted")
                    if next_due > now_ms():
                        due = min(due, next_due)
                        continue
                    self._count += 1
                    with session.transaction(deadline) as db:
                        lease = (self.number << 32) | self._count
                        taken = log.hand_out(db, group, limits, lease, now_ms(), counts)
                    self.locked_since = None
                    if taken:
                        return taken, 0, None
                    due = 0
            return [], due, version
        except Locked:
            self.locked_since = self.locked_since or time.monotonic()
            return [], NEVER, None

    def _in_turn(self) -> list[log.Group]:
        groups = list(self.groups.values())
        if len(groups) > 1:
            self._turn = (self._turn + 1) % len(groups)
            return groups[self._turn :] + groups[: self._turn]
        return groups

    def close(self, timeout: float) -> None:
        """Ends the session; what it still leases is given back at once, its attempt counted."""
        self.stopped = True
        self.wake.set()
        try:
            if not self.session.closed:
                with self.session.transaction(time.monotonic() + timeout) as db:
                    for subscription in self.groups:
                        log.release(db, subscription, self.number, now_ms())
        except ConnectionLost:
            pass  # their leases run out by themselves
        finally:
            self.session.closed = True
            self.wake.set()
            self.session.close()


class SqliteReceiver(Receiver):
    def __init__(
        self,
        session: Session,
        settings: SqliteSettings,
        topics: Sequence[str],
        subscription: Subscription,
        guarantee: Guarantee,
        settled: Settled,
        events: ReceiverEvents,
        prefetch: int,
        prefetch_bytes: int,
    ) -> None:
        self._session = session
        self._leases = _Leases(session, settings, topics, subscription)
        self._counts = guarantee is not Guarantee.AT_MOST_ONCE
        self._settled = settled
        self._events = events
        self._prefetch = prefetch
        self._prefetch_bytes = prefetch_bytes
        self._held: dict[Token, int] = {}
        self._bytes = 0
        self._over = False
        self._troubled = False
        groups = list(self._leases.groups.values())
        self.traits = Traits(
            dead_letters="native",
            attempts=groups[0].attempts,
            dead_letter=groups[0].dead_letter,
            lease_seconds=min(group.lease_ms for group in groups) / 1000,
            renewable=True,
        )
        self._assign(groups)

    def _assign(self, groups: Sequence[log.Group]) -> None:
        with self._session.lock:
            places = [log.cursor(self._session.connection, group) for group in groups]
        positions = [position_of(group.topic, seq) for group, seq in zip(groups, places, strict=True)]
        answers = {answer.topic: answer for answer in self._events.assigned(positions).values()}
        for group, position in zip(groups, positions, strict=True):
            answer = answers.get(group.topic, position)
            if answer != position:
                with self._session.transaction() as db:
                    log.seek(db, group, _place(answer))

    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        self._check()
        room = min(max_messages, self._prefetch - len(self._held))
        size = self._prefetch_bytes - self._bytes
        try:
            if room <= 0 or (size <= 0 and self._held):
                self._leases.wake.wait(timeout)
                self._leases.wake.clear()
                self._session.check()
                return ()
            taken = self._leases.take(log.Limits(room, size), timeout, self._counts)
        except Closed:
            raise
        except BrokerkitError as error:
            raise self._end(str(error)) from None
        self._tell_trouble()
        with self._session.lock:
            for received in taken:
                self._held[received.token] = received.size
                self._bytes += received.size
        return taken

    def settle(self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()) -> None:
        self._check()
        tokens = [*acks, *(nack.token for nack in nacks), *(reject.token for reject in rejects)]
        settlements: list[Settlement]
        try:
            with self._session.transaction() as db:
                lost = log.settle(db, self._leases.groups, acks, nacks, rejects, now_ms())
            settlements = [Settlement(tokens, End.SETTLED)]
            if lost:
                settlements = [Settlement([token for token in tokens if token not in lost], End.SETTLED)]
                settlements.append(Settlement(list(lost), End.LOST, "the lease was over and the message went on"))
        except Locked as error:
            # Nothing happened, and nothing will: the leases run out and the messages are handed out again.
            settlements = [Settlement(tokens, End.LOST, str(error))]
        except Closed:
            raise
        except BrokerkitError as error:
            self._drop(tokens)
            self._settled([Settlement(tokens, End.UNKNOWN, str(error))])
            self._end(str(error))
            return
        self._drop(tokens)
        self._settled([settlement for settlement in settlements if settlement.tokens])

    def extend(self, tokens: Sequence[Token], seconds: float) -> None:
        self._check()
        try:
            with self._session.transaction() as db:
                lost = log.extend(db, tokens, now_ms() + round(seconds * 1000))
        except Locked:
            return  # tried again at the next third of the lease
        except Closed:
            raise
        except BrokerkitError as error:
            raise self._end(str(error)) from None
        if lost:
            self._drop(lost)
            self._events.lease_lost(lost, "the lease was over and the message was handed out again")

    def flush(self, timeout: float) -> None:
        """Every settlement was answered when `settle` returned."""
        self._check()

    def close(self, timeout: float) -> None:
        self._leases.close(timeout)

    def _check(self) -> None:
        if self._over:
            raise ConnectionLost("this receiver's session is over")
        self._session.check()

    def _drop(self, tokens: Sequence[Token]) -> None:
        with self._session.lock:
            for token in tokens:
                self._bytes -= self._held.pop(token, 0)
        self._leases.wake.set()

    def _end(self, reason: str) -> ConnectionLost:
        if not self._over:
            self._over = True
            self._events.disconnected(reason)
        return ConnectionLost(reason)

    def _tell_trouble(self) -> None:
        since = self._leases.locked_since
        if since is None:
            if self._troubled:
                self._troubled = False
                self._events.recovered()
        elif not self._troubled and time.monotonic() - since > self._leases.busy_timeout:
            self._troubled = True
            self._events.trouble("another process keeps the file locked")


class SqliteTransactor(Transactor):
    """What is received is leased at once, what is sent and settled is kept here until `commit`, which does all of
    it in one SQL transaction, or nothing when a lease is gone. So nobody else waits while the user works, and a
    killed owner's messages come back when its leases run out, or at once to a successor of the same instance."""

    def __init__(
        self,
        session: Session,
        settings: SqliteSettings,
        topics: Sequence[str],
        subscription: Subscription,
        instance: str | None,
    ) -> None:
        self._session = session
        self._max_body = settings.max_body_bytes
        self._leases = _Leases(session, settings, topics, subscription)
        self.longest = min(group.lease_ms for group in self._leases.groups.values()) / 1000
        self._instance = instance
        if instance is not None:
            with session.transaction() as db:
                for number in self._leases.groups:
                    log.take_over(db, number, instance, self._leases.number, now_ms())
        self._forget()

    def begin(self) -> None:
        self._session.check()
        self._forget()

    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        taken = self._leases.take(log.Limits(max_messages, 1 << 62), timeout, True)
        self._received += [received.token for received in taken]
        return taken

    def send(self, topic: str, messages: Sequence[Message]) -> None:
        self._session.check()
        for message in messages:
            if message.body is None or len(message.body) > self._max_body:
                raise ConfigurationError(f"a body has 0 to {self._max_body} bytes (max_body_bytes)")
        with self._session.lock:
            _routable(log.find_topic(self._session.connection, topic), topic)
        self._sends.append((topic, list(messages)))

    def settle(self, acks: Sequence[Token], rejects: Sequence[Reject] = ()) -> None:
        self._session.check()
        self._acks += acks
        self._rejects += rejects

    def commit(self) -> None:
        settled = {*self._acks, *(reject.token for reject in self._rejects)}
        back = [Nack(token, 0.0, True) for token in self._received if token not in settled]
        now = now_ms()
        with self._session.transaction() as db:
            if self._instance is not None:
                for number in self._leases.groups:
                    if not log.is_current(db, number, self._instance, self._leases.number):
                        raise LeaseLost(f"a younger owner of instance {self._instance!r} has taken over")
            if log.settle(db, self._leases.groups, self._acks, (), self._rejects, now):
                raise LeaseLost("a lease of this transaction was over, and its message went on: nothing was committed")
            log.nack(db, self._leases.groups, back, now)
            for topic, messages in self._sends:
                log.append(db, _routable(log.find_topic(db, topic), topic), messages, now)
        self._forget()

    def abort(self) -> None:
        back = [Nack(token, 0.0, True) for token in self._received]
        self._forget()
        with self._session.transaction() as db:
            log.nack(db, self._leases.groups, back, now_ms())

    def close(self, timeout: float) -> None:
        self._leases.close(timeout)

    def _forget(self) -> None:
        self._received: list[Token] = []
        self._sends: list[tuple[str, list[Message]]] = []
        self._acks: list[Token] = []
        self._rejects: list[Reject] = []


def _routable(place: log.Place | None, topic: str) -> log.Place:
    if place is None:
        raise NotFound(f"topic {topic!r} is not in this file: declare it")
    if not place.routable:
        raise NotFound(f"topic {topic!r} has no subscription, so nothing sent there would be kept: declare one")
    return place


def _place(position: Position) -> int:
    value = position.value
    if not isinstance(value, int) or not 0 < value <= MASK:
        raise PositionLost(f"{position} is no place in a sqlite topic: values are 1, 2, 3, …")
    return value
