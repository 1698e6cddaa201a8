"""The relay: what an outbox holds goes to a broker, in order, and is deleted once the broker has it.

One owner thread, which never waits for the broker: it takes out rows by id, hands them to a producer for each topic and
deletes those whose receipts have ended. While it hands over, a second thread is at the store for it: deletes, and the
next look. A crash in between leaves rows that are sent again, under the same ids. Every look into the table is one
snapshot from the first row on, never from a place remembered: a transaction that commits late has small ids.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Literal, Protocol

from brokerkit import _fork
from brokerkit.errors import BrokerkitError, Closed, ConfigurationError, ConnectionLost, SendRefused
from brokerkit.events import EventKind, OnEvent, Reporter, backoffs
from brokerkit.message import Message, make
from brokerkit.once.outbox import DEFAULT, checked_name, unpacked
from brokerkit.once.stores import store_for
from brokerkit.once.stores.contract import SHARDS, Waiting
from brokerkit.producer import PENDING, Producer, Receipt, checked_timeout

BATCH_BYTES = 16 * 1024 * 1024
_MOST_BYTES = 4 * BATCH_BYTES
"""Bodies in flight, after which no more are taken out."""
_BATCHES = 4
"""Batches in flight."""
_LEASE = 5.0
"""Seconds after which a store that does not see a relay die gives its shards to another."""
_LOOK = 0.05
"""Seconds between two looks for new rows while there are some in flight."""
_REFUSED = frozenset({"too_large", "invalid"})
"""Causes that lie in the message. All others lie in its topic, which waits, and its messages with it."""


class Target(Protocol):
    """What a relay needs of a broker; `brokerkit.connect(…)` returns one."""

    @property
    def capabilities(self) -> Any: ...

    def producer(
        self, topic: str, *, delivery_timeout: float, max_in_flight: int, max_in_flight_bytes: int
    ) -> Producer: ...


@dataclass(slots=True, eq=False)
class _Flight:
    """Rows of one topic that were handed over together, and are settled together."""

    topic: str
    ids: Sequence[int]
    receipts: Sequence[Receipt]
    size: int
    ended: int = 0
    """The first of its receipts that are not known to have ended."""

    def over(self) -> bool:
        while self.ended < len(self.receipts) and self.receipts[self.ended].state != PENDING:
            self.ended += 1
        return self.ended == len(self.receipts)


@dataclass(slots=True)
class _Pause:
    """A topic that failed: nothing of it is taken out before `until`, nor before all of it in flight has ended."""

    waits: Iterator[float] = field(default_factory=backoffs)
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class _Turn:
    """What is done at the store in one go: deletes, marks, then a look unless there is no room."""

    gone: Sequence[int]
    refused: Sequence[tuple[int, str]]
    look: Callable[[], Sequence[Waiting]] | None


class Relay:
    """Sends what is in an outbox. `with relay:` runs it in a thread; `run` in the caller's.

    Several may be started for one outbox: each shard has one relay at a time, and the others stand by. In order per
    topic and key, as the broker's producer keeps it. A message that the broker refuses for what it is stays, with the
    reason; so do those of its topic and key behind it. A topic that cannot be sent to is tried again and again, at most
    2 seconds apart, and the others go on. Methods may be called from any thread.
    """

    def __init__(
        self,
        store: str,
        broker: Target,
        *,
        outbox: str = DEFAULT,
        share: tuple[int, int] = (1, 1),
        batch: int = 1000,
        poll: float = 0.5,
        delivery_timeout: float = 30.0,
        on_event: OnEvent | None = None,
    ) -> None:
        """Connects to the store at the URL `store`. The broker stays the caller's to close.

        - `share`: `(2, 4)` is the second of four relays that share the work, at most 16.
        - `batch`: rows taken out at a time, of which up to 16 MiB; four batches may be in flight.
        - `poll`: seconds between two looks when nobody wakes it.
        - `delivery_timeout`: seconds that a send may take before its row is taken out again.

        Raises ConnectionLost, AccessRefused, NotFound where there are no tables, ConfigurationError.
        """
        self._url = store
        self._store = store_for(store)
        self._broker = broker
        self._outbox = checked_name(outbox)
        self._shards = _shards(share)
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ConfigurationError(f"batch is a whole number of at least 1, not {batch!r}")
        self._batch = batch
        self._poll = checked_timeout(poll)
        self._delivery_timeout = checked_timeout(delivery_timeout)
        self._report = Reporter(f"relay of {outbox}", (on_event,))
        self._owner = secrets.token_hex(8)
        self._born = _fork.generation
        self._producers: dict[str, Producer] = {}
        self._paused: dict[str, _Pause] = {}
        self._flights: list[_Flight] = []
        self._rows: Sequence[Waiting] = ()
        """Found by the last look, and not yet handed over."""
        self._stale = False
        """Something failed since that look: what it found may not go before what failed."""
        self._gone: list[int] = []
        """Confirmed, and still in the store."""
        self._refused: list[tuple[int, str]] = []
        """Refused, and not yet marked so in the store."""
        self._meanwhile: tuple[_Turn, Future[Sequence[Waiting]]] | None = None
        """What the second thread is at."""
        self._held_until = 0.0
        self._stopping = False
        self._empty = False
        """Nothing was found that waits, nor is anything in flight."""
        self._give_up_at = 0.0
        self._thread: threading.Thread | None = None
        self._ended = False
        self.sent = 0
        """Messages confirmed and deleted so far."""
        self.error: Exception | None = None
        """What ended its thread for good."""
        self._connection: Any = None
        self._connect()

    @property
    def state(self) -> Literal["relaying", "standby", "disconnected", "closed"]:
        """`standby`: another relay has one of its shards, or nobody has run this one yet."""
        if self._ended:
            return "closed"
        if self._connection is None:
            return "disconnected"
        return "relaying" if self._held_until else "standby"

    def run(self, timeout: float = 10.0, *, until_empty: bool = False) -> None:
        """Relays until `stop`, then gives what is in flight up to `timeout` seconds to end. `until_empty`: or until
        nothing waits that can be sent.

        An outage of the store or the broker is waited for. Raises what no waiting mends: NotFound when the tables are
        gone, ConfigurationError, AccessRefused, Closed when the broker was closed.
        """
        _fork.check(self._born, "relay")
        if self._ended:
            raise ConfigurationError("a relay runs once: make another")
        waits = backoffs()
        try:
            while not self._stopping:
                if self._alive():
                    waits = backoffs()
                    if until_empty and self._empty:
                        self._stopping = True
                else:
                    self._rest(next(waits))
        finally:
            self._finish(self._give_up_at or time.monotonic() + timeout)

    def stop(self) -> None:
        """`run` returns soon. Safe to call from a signal handler."""
        self._stopping = True

    def close(self, timeout: float = 10.0) -> None:
        """Ends it; what is in flight gets up to `timeout` seconds to end. What has not ended is sent again by the next
        relay. Idempotent. Raises what ended the relay before."""
        _fork.check(self._born, "relay")
        self._give_up_at = time.monotonic() + checked_timeout(timeout)
        self._stopping = True
        if self._thread is not None:
            self._thread.join(timeout + 5.0)
        else:
            self._finish(self._give_up_at)
        error, self.error = self.error, None
        if error is not None:
            raise error

    def __enter__(self) -> Relay:
        """Starts the thread."""
        _fork.check(self._born, "relay")
        self._thread = threading.Thread(target=self._run_in_thread, name=f"brokerkit relay {self._outbox}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_in_thread(self) -> None:
        try:
            self.run()
        except Exception as error:
            self.error = error
            self._report(EventKind.UNFINISHED, f"the relay has ended: {error}")

    # ------------------------------------------------------------ one round

    def _alive(self) -> bool:
        """One round; False when the store has to be given time."""
        try:
            if self._connection is None:
                self._connect()
                self._report(EventKind.RECONNECTED, "the store answers again")
            self._round()
        except Exception as error:
            self._stale = True
            if self._connection is not None and self._store.missing_table(error):
                raise self._store.no_tables(self._url) from error
            if self._connection is not None and self._store.conflict(error):
                self._store.rollback(self._connection)
            elif self._store.own(error):
                self._disconnect()
                self._report(EventKind.DISCONNECTED, f"the relay's connection to the store failed: {error}")
            elif not isinstance(error, ConnectionLost):
                raise
            return False
        return True

    def _round(self) -> None:
        self._settle()
        self._join()
        rows, self._rows = self._rows, ()
        if not self._holds():
            self._write()
            self._rest(self._poll)
            return
        if self._stale:
            rows, self._stale = (), False
        turn = self._turn(rows)
        if rows:
            self._empty = False
            self._begin(turn)
            self._hand_over(rows)
            return
        self._done(turn, self._at_store(turn))
        if self._rows:
            return
        if self._flights:
            self._await_first()
        elif not self._paused and not self._empty:
            self._empty = True
        else:
            self._store.wait(self._connection, min(self._poll, _LEASE / 4))

    def _holds(self) -> bool:
        now = time.monotonic()
        if now < self._held_until:
            return True
        held = self._store.hold(self._connection, self._outbox, self._shards, self._owner, _LEASE)
        self._held_until = now + _LEASE / 4 if held else 0.0
        return held

    # ------------------------------------------------------------ at the store

    def _turn(self, rows: Sequence[Waiting] = (), *, look: bool = True) -> _Turn:
        """The next one, where `rows` are being handed over."""
        flying = [*chain.from_iterable(flight.ids for flight in self._flights), *(row[0] for row in rows)]
        room = len(flying) <= (_BATCHES - 1) * self._batch and sum(each.size for each in self._flights) < _MOST_BYTES
        looking = partial(
            self._store.waiting,
            self._connection,
            self._outbox,
            self._shards,
            flying=sorted(flying),
            without=self._pausing(rows),
            most=self._batch,
            most_bytes=BATCH_BYTES,
        )
        return _Turn(sorted(self._gone), self._refused.copy(), looking if look and room else None)

    def _at_store(self, turn: _Turn) -> Sequence[Waiting]:
        if turn.gone:
            self._store.delete(self._connection, turn.gone)
        for id, reason in turn.refused:
            self._store.refuse(self._connection, id, reason)
        return turn.look() if turn.look is not None else ()

    def _write(self) -> None:
        turn = self._turn(look=False)
        self._done(turn, self._at_store(turn))

    def _done(self, turn: _Turn, rows: Sequence[Waiting]) -> None:
        self.sent += len(turn.gone)
        del self._gone[: len(turn.gone)]
        del self._refused[: len(turn.refused)]
        self._rows = rows

    def _begin(self, turn: _Turn) -> None:
        """Has a second thread do it. The store's connection is that thread's until `_join`."""
        future: Future[Sequence[Waiting]] = Future()

        def work() -> None:
            try:
                future.set_result(self._at_store(turn))
            except BaseException as error:
                future.set_exception(error)

        self._meanwhile = turn, future
        threading.Thread(target=work, name=f"brokerkit relay {self._outbox} store", daemon=True).start()

    def _join(self) -> None:
        """Raises what the store said to the second thread; what it was not told is told again."""
        if self._meanwhile is not None:
            turn, future = self._meanwhile
            wait((future,))
            self._meanwhile = None
            self._done(turn, future.result())

    def _pausing(self, rows: Sequence[Waiting]) -> list[str]:
        if not self._paused:
            return []
        now = time.monotonic()
        flying = {flight.topic for flight in self._flights} | {row[1] for row in rows}
        return [
            topic for topic, pause in self._paused.items() if pause.until and (now < pause.until or topic in flying)
        ]

    # ------------------------------------------------------------ to the broker

    def _hand_over(self, rows: Sequence[Waiting]) -> None:
        """Rows in order; of a topic and key nothing follows what is refused here."""
        most = self._broker.capabilities.max_body_bytes or sys.maxsize
        barred: set[tuple[str, str | None]] = set()
        parts: dict[str, tuple[list[int], list[Message]]] = {}
        for id, topic, message_id, key, headers, content_type, published_at, body in rows:
            if barred and key is not None and (topic, key) in barred:
                continue
            if body is not None and len(body) > most:
                self._refuse(id, topic, f"the body has {len(body)} bytes, the broker takes {most}")
                barred.add((topic, key))
                continue
            part = parts.get(topic)
            if part is None:
                part = parts[topic] = [], []
            part[0].append(id)
            fields = (body, message_id, key, unpacked(headers), content_type, published_at, "producer")
            part[1].append(make(Message, fields))
        for topic, (ids, messages) in parts.items():
            producer = self._producer(topic, ids)
            if producer is not None:
                size = sum(len(message.body or b"") for message in messages)
                self._flights.append(_Flight(topic, ids, producer.send_many(messages), size))

    def _producer(self, topic: str, ids: Sequence[int]) -> Producer | None:
        """Of this topic; None when it cannot be had now."""
        producer = self._producers.get(topic)
        if producer is not None:
            return producer
        try:
            producer = self._producers[topic] = self._broker.producer(
                topic,
                delivery_timeout=self._delivery_timeout,
                # The bounds are the relay's: a send never waits for room.
                max_in_flight=2 * _BATCHES * self._batch,
                max_in_flight_bytes=1 << 40,
            )
        except ConfigurationError as error:
            for id in ids:
                self._refuse(id, topic, str(error))
        except Closed:
            raise
        except BrokerkitError as error:
            self._pause(topic, str(error))
        return producer

    def _await_first(self) -> None:
        """Until the oldest send has ended, for a moment."""
        first = self._flights[0]
        if not first.over():
            try:
                first.receipts[first.ended].result(_LOOK)
            except (BrokerkitError, TimeoutError):
                pass

    # ------------------------------------------------------------ the ends of sends

    def _settle(self) -> None:
        """Notes for the next turn how the flights have ended that are over."""
        over = [flight for flight in self._flights if flight.over()]
        if not over:
            return
        failed: dict[str, str] = {}
        went = {flight.topic for flight in over if self._note(flight, failed)}
        self._flights = [flight for flight in self._flights if flight not in over]
        for topic in [topic for topic in self._paused if topic in went and topic not in failed]:
            del self._paused[topic]
            self._report(EventKind.RECOVERED, f"messages for {topic!r} go out again")
        for topic, reason in failed.items():
            self._pause(topic, reason)

    def _note(self, flight: _Flight, failed: dict[str, str]) -> bool:
        """Whether any of it is confirmed. What failed for its topic's sake goes into `failed`."""
        gone = len(self._gone)
        for id, receipt in zip(flight.ids, flight.receipts, strict=True):
            if receipt.state == "confirmed":
                self._gone.append(id)
            elif isinstance(receipt.error, SendRefused) and receipt.error.cause in _REFUSED:
                self._refuse(id, flight.topic, str(receipt.error))
            elif receipt.state != PENDING:
                failed[flight.topic] = str(receipt.error)
        return len(self._gone) > gone

    def _refuse(self, id: int, topic: str, reason: str) -> None:
        self._stale = True
        self._refused.append((id, reason))
        self._report(EventKind.TROUBLE, f"a message for {topic!r} is refused and stays in the outbox: {reason}")

    def _pause(self, topic: str, reason: str) -> None:
        self._stale = True
        pause = self._paused.setdefault(topic, _Pause())
        if not pause.until:
            self._report(EventKind.TROUBLE, f"messages for {topic!r} wait: {reason}")
        pause.until = time.monotonic() + next(pause.waits)

    # ------------------------------------------------------------ sessions

    def _connect(self) -> None:
        self._connection, _ = self._store.opened(self._url, self._store.prepare)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._held_until = 0.0
        if connection is not None:
            self._store.rollback(connection)
            self._store.close(connection)

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _finish(self, deadline: float) -> None:
        if self._ended:
            return
        self._ended = True
        try:
            self._join()
            while self._connection is not None and self._flights and time.monotonic() < deadline:
                self._await_first()
                self._settle()
                self._write()
            if self._connection is not None:
                for flight in self._flights:
                    self._note(flight, {})
                self._write()
                self._store.let_go(self._connection, self._outbox, self._owner)
        except Exception as error:
            self._report(EventKind.UNFINISHED, f"what was in flight is sent again by the next relay: {error}")
        self._disconnect()
        for producer in self._producers.values():
            producer.close(max(0.1, deadline - time.monotonic()))


def _shards(share: object) -> Sequence[int]:
    if (
        not isinstance(share, tuple)
        or len(share) != 2
        or not all(type(each) is int for each in share)
        or not 1 <= share[0] <= share[1] <= SHARDS
    ):
        raise ConfigurationError(f"share is (n, of): the n-th of so many relays, at most {SHARDS}; not {share!r}")
    return range(share[0] - 1, SHARDS, share[1])
