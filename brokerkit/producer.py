"""Producer and Receipt: sending, and how each send ended.

The portable half of a send. A driver's Sender moves batches and reports outcomes; everything that is the same
for every broker is here: bounds, receipts, the delivery timeout, another attempt with the same id, reconnects,
close.

Two locks, never held while waiting. `_lock` orders sends. `_outcomes` lets outcomes in, which may come from any
thread, also from inside a send.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from brokerkit import _fork
from brokerkit.driver import Cause, Confirmed, Driver, Outcome, Position, Refused, Sender
from brokerkit.errors import (
    BrokerkitError,
    Closed,
    ConfigurationError,
    ConnectionLost,
    ProducerFull,
    SendError,
    SendRefused,
    SendUnknown,
)
from brokerkit.events import EventKind, Reporter, backoffs, call
from brokerkit.guarantees import Guarantee
from brokerkit.message import Headers, Message, checked, make

State = Literal["pending", "confirmed", "refused", "unknown"]
PENDING: Final = "pending"

_BATCH = 500
"""Messages offered to a sender at once: enough for one commit of an embedded broker to be shared."""


class Receipt:
    """How one send ended, or that it has not yet. Thread-safe."""

    __slots__ = (
        "_attempts",
        "_deadline",
        "_delay",
        "_detail",
        "_on_end",
        "_uncertain",
        "_waiter",
        "message",
        "state",
    )

    def __init__(self, message: Message, delay: float, on_end: Callable[[Receipt], object] | None) -> None:
        self.message = message
        self.state: State = PENDING
        """`pending`, then once and for all `confirmed`, `refused` or `unknown`."""
        self._detail: Any = None
        self._delay = delay
        self._on_end = on_end
        self._waiter: threading.Event | None = None
        self._attempts = 0
        self._uncertain: str | None = None
        self._deadline = 0.0

    @property
    def id(self) -> str:
        """The message id."""
        return self.message.id

    @property
    def attempts(self) -> int:
        """How often the message was handed to the broker's client."""
        return self._attempts

    @property
    def position(self) -> Position | None:
        """Where the broker stored it, when confirmed and told."""
        return Position(*self._detail) if self.state == "confirmed" and self._detail is not None else None

    @property
    def error(self) -> SendError | None:
        """SendRefused or SendUnknown once the send ended so."""
        return self._detail if self.state in ("refused", "unknown") else None

    def result(self, timeout: float | None = None) -> Position | None:
        """Waits up to `timeout` seconds (None: until the delivery timeout ends it) and returns the position.

        Raises TimeoutError while the send is pending, SendRefused or SendUnknown once it ended so.
        """
        if self.state == PENDING:
            with _waiters:
                waiter = self._waiter
                if waiter is None:
                    waiter = self._waiter = threading.Event()
            if self.state == PENDING and not waiter.wait(timeout):
                raise TimeoutError(f"message {self.id} is neither confirmed nor refused after {timeout} s")
        if self.state == "confirmed":
            return self.position
        raise self._detail

    def _end(self, state: State, detail: object) -> None:
        self._detail = detail
        self.state = state
        self._let_go()

    def _let_go(self) -> None:
        """After the end: whoever is in `result`. Who comes there now sees the state."""
        with _waiters:
            if self._waiter is not None:
                self._waiter.set()

    def __repr__(self) -> str:
        return f"Receipt(id={self.id!r}, {self.state})"


_waiters = threading.Lock()


class _Session:
    """A sender and the receipts it owes an outcome, by sequence number."""

    __slots__ = ("next", "over", "owner", "receipts", "sender")

    def __init__(self, owner: Producer) -> None:
        self.owner = owner
        self.receipts: dict[int, Receipt] = {}
        self.next = 0
        self.over = False
        self.sender: Sender

    # SenderEvents

    def disconnected(self, reason: str) -> None:
        if not self.over:
            self.over = True
            self.owner._disconnected(self, reason)

    def trouble(self, reason: str) -> None:
        self.owner._report(EventKind.TROUBLE, reason)

    def recovered(self) -> None:
        self.owner._report(EventKind.RECOVERED, "the broker answers again")

    def blocked(self, reason: str) -> None:
        self.owner._report(EventKind.BLOCKED, reason)

    def unblocked(self) -> None:
        self.owner._report(EventKind.UNBLOCKED, "the broker takes messages again")
        self.owner._wake.set()

    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        self.owner._take_outcomes(self, outcomes)


class Producer:
    """Sends to one topic under one guarantee. Thread-safe; a context manager, whose exit calls `close`.

    - `at_most_once`: one attempt, no confirm. Receipts are `unknown` from the start; `dropped` counts what
      certainly was not written.
    - `at_least_once`: tried again with the same id until confirmed or `delivery_timeout` seconds are over.
      Stored twice is possible where the broker does not dedup.
    - `exactly_once`: as before, on a broker that recognises its producer's own repetitions.
    """

    def __init__(
        self,
        driver: Driver,
        topic: str,
        guarantee: Guarantee,
        report: Reporter,
        *,
        subscription: str | None = None,
        native: Mapping[str, Any] | None = None,
        delivery_timeout: float = 30.0,
        max_in_flight: int = 10_000,
        max_in_flight_bytes: int = 64 * 1024 * 1024,
        when_full: Literal["block", "fail"] = "block",
        full_timeout: float = 30.0,
        open_timeout: float = 10.0,
    ) -> None:
        self.topic = topic
        self.guarantee = guarantee
        self.dropped = 0
        self._driver = driver
        self._subscription = subscription
        self._native = native
        self._reporter = report
        self._delivery_timeout = delivery_timeout
        self._max_in_flight = max_in_flight
        self._max_bytes = max_in_flight_bytes
        self._when_full = when_full
        self._full_timeout = full_timeout
        self._open_timeout = open_timeout
        self._born = _fork.generation
        self._tracked = guarantee is not Guarantee.AT_MOST_ONCE
        self._direct = not driver.blocking
        self._lock = threading.Lock()
        self._outcomes = threading.Lock()
        self._room = threading.Condition(threading.Lock())
        self._waiting = 0
        self._backlog: deque[Receipt] = deque()
        self._offered: list[Receipt] = []
        self._ended: deque[Receipt] = deque()
        self._news: deque[tuple[EventKind, str]] = deque()
        self._again: list[Receipt] = []
        self._bytes_in = 0
        self._bytes_out = 0
        self._resume_at = 0.0
        self._backoff = backoffs()
        self._closing = False
        self._closed = False
        self._announced = False
        self._untracked = Receipt(Message(b"", id="untracked"), 0.0, None)
        self._untracked._end("unknown", SendUnknown("sent at most once: no confirm was asked for"))
        self._wake = threading.Event()
        self._session: _Session | None = self._open()
        self._worker = threading.Thread(target=self._work, name=f"brokerkit producer {topic}", daemon=True)
        self._worker.start()

    # ------------------------------------------------------------ what users call

    @property
    def state(self) -> Literal["connected", "disconnected", "closed"]:
        """Whether there is a session with the broker now."""
        if self._closed:
            return "closed"
        session = self._session
        return "disconnected" if session is None or session.over else "connected"

    @property
    def closed(self) -> bool:
        return self._closing

    @property
    def in_flight(self) -> int:
        """Messages taken and not ended."""
        session = self._session
        return len(self._backlog) + len(self._offered) + len(self._again) + (len(session.receipts) if session else 0)

    def send(
        self,
        body: bytes,
        *,
        id: str | None = None,
        key: str | None = None,
        headers: Headers | None = None,
        content_type: str | None = None,
        delay: float = 0.0,
        on_end: Callable[[Receipt], object] | None = None,
    ) -> Receipt:
        """Hands one message over and returns its receipt at once, or waits for room in the bound.

        `delay` in seconds, where the broker has it. `on_end` is called with the receipt once it ended, on the
        producer's own thread, which also retries: keep it short, and do not wait in it. Raises ConfigurationError for a
        wrong argument, ProducerFull when there is no room in time, Closed.
        """
        return self._send_one(make(Message, checked(body, id, key, headers, content_type)), delay, on_end)

    def send_many(
        self, messages: Iterable[Message | bytes], *, on_end: Callable[[Receipt], object] | None = None
    ) -> list[Receipt]:
        """Hands many messages over, batched; bare bytes get a fresh id. Returns their receipts, in order.

        Raises as `send` does; what was taken before stays in flight.
        """
        receipts: list[Receipt] = []
        batch: list[Receipt] = []
        for message in messages:
            made = message if isinstance(message, Message) else make(Message, checked(message))
            batch.append(Receipt(made, 0.0, on_end))
            if len(batch) == _BATCH:
                self._hand_over(batch)
                receipts += batch
                batch = []
        if batch:
            self._hand_over(batch)
            receipts += batch
        return receipts if self._tracked else [self._untracked] * len(receipts)

    def flush(self, timeout: float = 30.0) -> int:
        """Waits up to `timeout` seconds for every send so far to end; returns how many are still pending."""
        self._check()
        return self._flush(checked_timeout(timeout))

    def close(self, timeout: float = 30.0) -> int:
        """Takes no more, waits for what is in flight, ends the session; returns how many did not end by then.

        Those end refused (never handed to the client) or unknown. Idempotent.
        """
        _fork.check(self._born, "producer")
        deadline = time.monotonic() + checked_timeout(timeout)
        with self._lock:
            if self._closing:
                return 0
            self._closing = True
        self._wait_until(self._idle, deadline)
        self._closed = True
        self._wake.set()
        self._worker.join(max(0.0, deadline - time.monotonic()) + 1.0)
        session = self._session
        if session is not None:
            session.over = True
            session.sender.close(max(0.1, deadline - time.monotonic()))
        unfinished = self._give_up(session)
        self._tell()
        return unfinished

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Producer({self.topic!r}, {self.guarantee}, {self.state})"

    # ------------------------------------------------------------ handing over

    def _check(self) -> None:
        if self._born != _fork.generation:
            _fork.check(self._born, "producer")
        if self._closing:
            raise Closed(f"the producer of {self.topic!r} is closed")

    def _send_one(
        self, message: Message, delay: float = 0.0, on_end: Callable[[Receipt], object] | None = None
    ) -> Receipt:
        """The hot path: one message straight to an asynchronous sender, when nothing stands before it."""
        if self._born != _fork.generation or self._closing:
            self._check()
        if delay:
            self._check_delay(delay)
        receipt = Receipt(message, delay, on_end)
        if self._direct and self._tracked and not delay:
            size = len(message[0] or b"")
            with self._lock:
                session = self._session
                if (
                    session is not None
                    and not self._backlog
                    and not self._again
                    and len(session.receipts) < self._max_in_flight
                    and self._bytes_in - self._bytes_out < self._max_bytes
                    and not self._closing
                ):
                    receipt._deadline = time.monotonic() + self._delivery_timeout
                    receipt._attempts = 1
                    number = session.next
                    session.receipts[number] = receipt
                    session.next = number + 1
                    self._bytes_in += size
                    try:
                        if session.sender.send((message,)):
                            return receipt
                    except ConnectionLost as error:
                        session.disconnected(str(error))
                    # Not taken: as if never offered.
                    session.next = number
                    session.receipts.pop(number, None)
                    receipt._attempts = 0
                    self._bytes_in -= size
        self._hand_over([receipt])
        return receipt if self._tracked else self._untracked

    def _hand_over(self, receipts: list[Receipt]) -> None:
        """Puts receipts into the backlog as room allows, and feeds it."""
        self._check()
        start = 0
        give_up_at = time.monotonic() + self._full_timeout
        while start < len(receipts):
            with self._lock:
                self._check()
                room = self._max_in_flight - self.in_flight
                if self._bytes_in - self._bytes_out >= self._max_bytes:
                    room = 0
                taken = receipts[start : start + max(room, 0)]
                deadline = time.monotonic() + self._delivery_timeout
                for receipt in taken:
                    receipt._deadline = deadline
                    self._bytes_in += len(receipt.message.body or b"")
                self._backlog.extend(taken)
                start += len(taken)
                if self._direct:
                    self._feed()
            if not self._direct or self._backlog:
                self._wake.set()
            if start < len(receipts) and not taken:
                self._await_room(give_up_at)

    def _check_delay(self, delay: float) -> None:
        if not delay > 0:
            raise ConfigurationError(f"delay must not be negative, got {delay}")
        if not self._driver.capabilities.delayed_send:
            raise ConfigurationError("this broker cannot delay a send: leave delay out, or send later")

    def _await_room(self, give_up_at: float) -> None:
        if self._when_full == "fail" or not self._wait_until(self._has_room, give_up_at):
            waited = "" if self._when_full == "fail" else f" for {self._full_timeout} s"
            raise ProducerFull(
                f"{self.in_flight} messages of {self.topic!r} are in flight, no room{waited}: "
                "slow down, raise max_in_flight, or see whether the broker is reachable"
            )

    def _has_room(self, more: int = 0) -> bool:
        """For one message, and `more`. Waiters are woken when there is room for some: to wake one for each message
        that ends costs more than the messages; they look for themselves now and then as well."""
        bytes_in_flight = self._bytes_in - self._bytes_out
        return self._closing or (self.in_flight + more < self._max_in_flight and bytes_in_flight < self._max_bytes)

    def _wait_until(self, done: Callable[[], bool], deadline: float) -> bool:
        with self._room:
            self._waiting += 1
            try:
                while not done():
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return False
                    self._room.wait(min(left, 0.1))
                return True
            finally:
                self._waiting -= 1

    def _flush(self, timeout: float) -> int:
        self._wake.set()
        self._wait_until(self._idle, time.monotonic() + timeout)
        return self.in_flight

    def _idle(self) -> bool:
        with self._lock, self._outcomes:
            return self.in_flight == 0

    def _feed(self) -> None:
        """Offers the backlog to the sender, in order. Under `_lock`; a blocking sender's worker calls it too."""
        while self._backlog and time.monotonic() >= self._resume_at:
            session = self._session
            if session is None or session.over:
                return
            batch = self._next_batch()
            taken = self._offer(session, batch)
            for receipt in reversed(batch[taken:]):
                self._backlog.appendleft(receipt)
            if taken < len(batch):
                return

    def _next_batch(self) -> list[Receipt]:
        batch = [self._backlog.popleft()]
        while self._backlog and len(batch) < _BATCH and self._backlog[0]._delay == batch[0]._delay:
            batch.append(self._backlog.popleft())
        return batch

    def _offer(self, session: _Session, batch: list[Receipt]) -> int:
        first = session.next
        session.receipts.update(zip(range(first, first + len(batch)), batch, strict=True))
        for receipt in batch:
            receipt._attempts += 1
        taken = 0
        try:
            messages = [receipt.message for receipt in batch]
            delay = batch[0]._delay
            taken = session.sender.send(messages, delay) if delay else session.sender.send(messages)
        except ConnectionLost as error:
            session.disconnected(str(error))
        session.next = first + taken
        for number in range(first + taken, first + len(batch)):
            if session.receipts.pop(number, None) is not None:
                batch[number - first]._attempts -= 1
        if not self._tracked:
            for number in range(first, first + taken):
                self._leave(session.receipts.pop(number, None))
        return taken

    # ------------------------------------------------------------ outcomes

    def _take_outcomes(self, session: _Session, outcomes: Sequence[Outcome]) -> None:
        pop = session.receipts.pop
        ended = self._ended
        with self._outcomes:
            for outcome in outcomes:
                if type(outcome) is not Confirmed:
                    self._not_confirmed(session, outcome)
                    continue
                first, last, positions = outcome
                size = 0
                for number in range(first, last + 1):
                    receipt = pop(number, None)
                    if receipt is not None:
                        size += len(receipt.message[0] or b"")
                        if positions is not None:
                            receipt._detail = positions[number - first]
                        receipt.state = "confirmed"
                        if receipt._waiter is not None:
                            receipt._let_go()
                        if receipt._on_end is not None:
                            ended.append(receipt)
                self._bytes_out += size
        if ended:
            self._wake.set()
        if self._waiting and self._has_room(self._max_in_flight // 8):
            with self._room:
                self._room.notify_all()

    def _report(self, kind: EventKind, detail: str) -> None:
        """For the worker to tell: users' callbacks never run under a lock or on a client's thread."""
        self._news.append((kind, detail))
        self._wake.set()

    def _tell(self) -> None:
        while self._news:
            self._reporter(*self._news.popleft())
        while self._ended:
            receipt = self._ended.popleft()
            if receipt._on_end is not None:
                call(receipt._on_end, receipt)

    def _not_confirmed(self, session: _Session, outcome: Outcome) -> None:
        assert not isinstance(outcome, Confirmed)
        again: list[Receipt] = []
        for number in range(outcome.first, outcome.last + 1):
            receipt = session.receipts.pop(number, None)
            if not self._tracked:
                self._drop(outcome.detail)
            if receipt is None:
                continue
            if not isinstance(outcome, Refused):
                receipt._uncertain = outcome.detail
            if outcome.retry and self._tracked and time.monotonic() < receipt._deadline:
                again.append(receipt)
            else:
                self._finish(receipt, outcome.cause, outcome.detail)
        if again:
            self._again += again
            self._wake.set()

    def _finish(self, receipt: Receipt, cause: str, detail: str) -> None:
        """Ends a receipt that nobody will try again: unknown if any attempt was, refused otherwise."""
        self._leave(receipt)
        if receipt._uncertain is not None:
            receipt._end(
                "unknown",
                SendUnknown(f"message {receipt.id} may be stored in {self.topic!r}: {receipt._uncertain}"),
            )
        else:
            receipt._end(
                "refused", SendRefused(f"message {receipt.id} is not stored in {self.topic!r}: {detail}", cause)
            )
        if receipt._on_end is not None:
            self._ended.append(receipt)

    def _leave(self, receipt: Receipt | None) -> None:
        if receipt is not None:
            self._bytes_out += len(receipt.message.body or b"")

    def _drop(self, detail: str) -> None:
        self.dropped += 1
        if not self._announced:
            self._announced = True
            self._report(EventKind.DROPPED, f"sends at most once are being dropped: {detail}")

    # ------------------------------------------------------------ the worker: retries, timeouts, reconnects

    def _work(self) -> None:
        while not self._closed:
            self._wake.wait(0.1 if self.in_flight or self._session is None else min(1.0, self._delivery_timeout / 2))
            self._wake.clear()
            self._put_again()
            self._expire()
            self._tell()
            if self._session is None or self._session.over:
                self._reconnect()
            if self._direct:
                with self._lock:
                    self._feed()
            else:
                self._feed_blocking()

    def _put_again(self) -> None:
        """What is tried again goes before everything that was never tried, in its old order."""
        with self._lock:
            with self._outcomes:
                again, self._again = self._again, []
            if again:
                again.sort(key=lambda receipt: receipt._deadline)
                self._backlog.extendleft(reversed(again))
                if self._session is not None and not self._session.over:
                    self._resume_at = time.monotonic() + next(self._backoff)

    def _feed_blocking(self) -> None:
        """For a blocking sender: the call is made without the lock, so that users can go on handing over."""
        while not self._closed:
            session = self._session
            with self._lock:
                if session is None or session.over or not self._backlog or time.monotonic() < self._resume_at:
                    return
                self._offered = self._next_batch()
            batch = self._offered
            taken = self._offer(session, batch)
            with self._lock:
                self._offered = []
                self._backlog.extendleft(reversed(batch[taken:]))
            if not self._tracked and self._waiting:
                with self._room:
                    self._room.notify_all()
            if taken < len(batch):
                return

    def _expire(self) -> None:
        now = time.monotonic()
        with self._lock, self._outcomes:
            while self._backlog and self._backlog[0]._deadline <= now:
                receipt = self._backlog.popleft()
                why = f"not handed over within the delivery timeout of {self._delivery_timeout} s"
                if self._tracked:
                    self._finish(receipt, Cause.UNREACHABLE, why)
                else:
                    self._leave(receipt)
                    self._drop(why)
            receipts = self._session.receipts if self._session is not None else {}
            while receipts:
                number = next(iter(receipts))
                if receipts[number]._deadline > now:
                    break
                receipt = receipts.pop(number)
                receipt._uncertain = f"no answer within the delivery timeout of {self._delivery_timeout} s"
                self._finish(receipt, Cause.TIMED_OUT, receipt._uncertain)
        if self._waiting:
            with self._room:
                self._room.notify_all()

    def _open(self) -> _Session:
        session = _Session(self)
        session.sender = self._driver.sender(
            self.topic,
            self.guarantee,
            session.outcomes,
            session,
            subscription=self._subscription,
            native=self._native,
            delivery_timeout=self._delivery_timeout,
            timeout=self._open_timeout,
        )
        return session

    def _disconnected(self, session: _Session, reason: str) -> None:
        if not self._closed:
            self._report(EventKind.DISCONNECTED, reason)
        self._wake.set()

    def _reconnect(self) -> None:
        old, self._session = self._session, None
        if old is not None:
            old.sender.close(1.0)
            # A driver owes every outcome before it ends its session; what it forgot may be stored.
            with self._outcomes:
                forgotten = list(old.receipts.values())
                old.receipts.clear()
                for receipt in forgotten:
                    receipt._uncertain = "the session ended without an answer"
                self._again += forgotten
            self._backoff = backoffs()
            self._resume_at = 0.0
        if time.monotonic() < self._resume_at:
            return
        try:
            session = self._open()
        except BrokerkitError as error:
            self._resume_at = time.monotonic() + next(self._backoff)
            with self._outcomes:
                if not self._tracked and self._backlog:
                    for receipt in self._backlog:
                        self._leave(receipt)
                        self._drop(str(error))
                    self._backlog.clear()
            return
        self._resume_at = 0.0
        self._backoff = backoffs()
        self._announced = False
        self._session = session
        self._put_again()
        self._report(EventKind.RECONNECTED, f"sending to {self.topic!r} again")
        self._wake.set()

    def _give_up(self, session: _Session | None) -> int:
        """After close: whatever has no end yet gets one."""
        with self._outcomes:
            left = [*self._again, *self._backlog]
            self._again.clear()
            self._backlog.clear()
            if session is not None:
                for receipt in session.receipts.values():
                    receipt._uncertain = "the producer was closed before the broker answered"
                    left.append(receipt)
                session.receipts.clear()
            for receipt in left:
                if self._tracked:
                    self._finish(receipt, Cause.CLOSED, "the producer was closed before it was handed over")
        if left:
            self._report(EventKind.UNFINISHED, f"closed with {len(left)} sends that had not ended")
        return len(left)


def checked_timeout(timeout: float) -> float:
    """Raises ConfigurationError for a negative or non-numeric timeout."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ConfigurationError(f"a timeout is a number of seconds that is not negative, got {timeout!r}")
    return float(timeout)
