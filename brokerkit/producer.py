"""Producer: sending, and what becomes of it.

The portable half of a send. A driver's Sender moves messages and reports how they ended; everything that is the same
for every broker is here and in sending.py: bounds, receipts, the delivery timeout, another attempt with the same id,
reconnects, close. The locks are the window's.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from brokerkit import _fork
from brokerkit.driver import Cause, Confirmed, Driver, Outcome, Refused, Sender, Unknown
from brokerkit.errors import BrokerkitError, Closed, ConfigurationError, ConnectionLost, ProducerFull
from brokerkit.events import EventKind, Reporter, backoffs, call
from brokerkit.guarantees import Guarantee
from brokerkit.message import Headers, Message, checked
from brokerkit.sending import PENDING as PENDING
from brokerkit.sending import REFUSED, UNKNOWN, Window
from brokerkit.sending import Receipt as Receipt

_BATCH = 500
"""Messages offered to a sender at once: enough for one commit of an embedded broker to be shared."""


class _Session:
    """A sender, and the receipts it owes an outcome by sequence number, where it takes batches."""

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

    def told(self, receipts: int) -> None:
        self.owner._take_told(receipts)

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
        self._room = threading.Condition(threading.Lock())
        self._waiting = 0
        self._offered: list[Receipt] = []
        self._news: deque[tuple[EventKind, str]] = deque()
        self._resume_at = 0.0
        self._backoff = backoffs()
        self._closed = False
        self._announced = False
        self._untracked = Receipt(b"", "untracked")
        self._untracked._end(UNKNOWN, "sent at most once: no confirm was asked for")
        self._window = Window(
            max_in_flight,
            max_in_flight_bytes,
            None if self._tracked else self._untracked,
            self._send_on,
            self._check,
            self._lost,
        )
        self.send = self._window.send  # type: ignore[method-assign]  # one call less on the way of each message
        self._lock = self._window.lock
        self._outcomes = self._window.outcomes
        self._wake = threading.Event()
        self._session: _Session | None = self._open()
        self._window.post = self._session.sender.post
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
        return self._window.closing

    @property
    def in_flight(self) -> int:
        """Messages taken and not ended."""
        session = self._session
        window = self._window
        waiting = len(window.backlog) + len(self._offered) + len(window.again)
        return waiting + len(window.posted) + (len(session.receipts) if session else 0)

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
        return self._window.send(
            body, id=id, key=key, headers=headers, content_type=content_type, delay=delay, on_end=on_end
        )

    def send_many(
        self, messages: Iterable[Message | bytes], *, on_end: Callable[[Receipt], object] | None = None
    ) -> list[Receipt]:
        """Hands many messages over, batched; bare bytes get a fresh id. Returns their receipts, in order.

        Raises as `send` does; what was taken before stays in flight.
        """
        receipts: list[Receipt] = []
        batch: list[Receipt] = []
        for message in messages:
            receipt = Receipt(*(message if isinstance(message, Message) else checked(message)))
            receipt._on_end = on_end
            batch.append(receipt)
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
            if self._window.closing:
                return 0
            self._window.closing = True
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
        if self._window.closing:
            raise Closed(f"the producer of {self.topic!r} is closed")

    def _send_one(
        self, message: Message, delay: float = 0.0, on_end: Callable[[Receipt], object] | None = None
    ) -> Receipt:
        receipt = Receipt(*message)
        receipt._taken_at = time.monotonic()
        receipt._delay = delay
        receipt._on_end = on_end
        return self._send_on(receipt)

    def _send_on(self, receipt: Receipt) -> Receipt:
        """One message to a sender that takes batches, when nothing stands before it; into the backlog otherwise."""
        self._check()
        if receipt._delay:
            self._check_delay(receipt._delay)
        elif self._direct and self._tracked:
            size = len(receipt.body or b"")
            with self._lock:
                session = self._session
                window = self._window
                if session is not None and session.sender.post is None and window.is_clear(len(session.receipts)):
                    receipt.attempts = 1
                    number = session.next
                    session.receipts[number] = receipt
                    session.next = number + 1
                    window.bytes_in += size
                    try:
                        if session.sender.send((receipt.message,)):
                            return receipt
                    except ConnectionLost as error:
                        session.disconnected(str(error))
                    # Not taken: as if never offered.
                    session.next = number
                    session.receipts.pop(number, None)
                    receipt.attempts = 0
                    window.bytes_in -= size
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
                if self._window.bytes_in - self._window.bytes_out >= self._max_bytes:
                    room = 0
                taken = receipts[start : start + max(room, 0)]
                now = time.monotonic()
                for receipt in taken:
                    receipt._taken_at = now
                    self._window.bytes_in += len(receipt.body or b"")
                self._window.backlog.extend(taken)
                start += len(taken)
                if self._direct:
                    self._feed()
            if not self._direct or self._window.backlog:
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
        window = self._window
        in_flight = self.in_flight + more < self._max_in_flight
        return window.closing or (in_flight and window.bytes_in - window.bytes_out < self._max_bytes)

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
        while self._window.backlog and time.monotonic() >= self._resume_at:
            session = self._session
            if session is None or session.over:
                return
            batch = self._next_batch()
            taken = self._offer(session, batch)
            for receipt in reversed(batch[taken:]):
                self._window.backlog.appendleft(receipt)
            if taken < len(batch):
                return

    def _next_batch(self) -> list[Receipt]:
        batch = [self._window.backlog.popleft()]
        while self._window.backlog and len(batch) < _BATCH and self._window.backlog[0]._delay == batch[0]._delay:
            batch.append(self._window.backlog.popleft())
        return batch

    def _offer(self, session: _Session, batch: list[Receipt]) -> int:
        """How many of them the sender took."""
        if session.sender.post is not None:
            for number, receipt in enumerate(batch):
                receipt._stamp()
                if not self._window.give(receipt):
                    return number
            return len(batch)
        first = session.next
        session.receipts.update(zip(range(first, first + len(batch)), batch, strict=True))
        for receipt in batch:
            receipt.attempts += 1
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
                batch[number - first].attempts -= 1
        if not self._tracked:
            for number in range(first, first + taken):
                gone = session.receipts.pop(number, None)
                if gone is not None:
                    self._window.leave(gone)
        return taken

    # ------------------------------------------------------------ outcomes

    def _take_outcomes(self, session: _Session, outcomes: Sequence[Outcome]) -> None:
        pop = session.receipts.pop
        confirm = self._window.confirm
        with self._outcomes:
            for outcome in outcomes:
                if not isinstance(outcome, Confirmed):
                    self._not_confirmed(session, outcome)
                    continue
                first, last, positions = outcome
                for number in range(first, last + 1):
                    receipt = pop(number, None)
                    if receipt is not None:
                        if positions is not None:
                            receipt._place = positions[number - first]
                        confirm(receipt)
        self._make_room()

    def _take_told(self, receipts: int) -> None:
        drops = self._window.drops
        with self._outcomes:
            while drops is not None and drops.outcomes:
                outcome = drops.outcomes.popleft()
                if isinstance(outcome, Refused):
                    self._drop(outcome.detail)
            for receipt in self._window.sweep(receipts):
                self._failed(receipt, receipt._outcome)
        self._make_room()

    def _make_room(self) -> None:
        """After ends: `on_end` is to be called, and there may be room for somebody."""
        if self._window.ended:
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
        while self._window.ended:
            receipt = self._window.ended.popleft()
            on_end, receipt._on_end = receipt._on_end, None  # it may hold whatever holds the receipt
            if on_end is not None:
                call(on_end, receipt)

    def _not_confirmed(self, session: _Session, outcome: Refused | Unknown) -> None:
        for number in range(outcome.first, outcome.last + 1):
            receipt = session.receipts.pop(number, None)
            if not self._tracked:
                self._drop(outcome.detail)
                if receipt is not None:
                    self._window.leave(receipt)
            elif receipt is not None:
                self._failed(receipt, outcome)

    def _failed(self, receipt: Receipt, outcome: Refused | Unknown) -> None:
        """An attempt: another one follows, or the receipt ends. Under `_outcomes`."""
        receipt._outcome = None
        if isinstance(outcome, Unknown):
            receipt._uncertain = outcome.detail
        if outcome.retry and time.monotonic() < receipt._taken_at + self._delivery_timeout:
            self._window.again.append(receipt)
            self._wake.set()
        else:
            self._finish(receipt, outcome.cause, outcome.detail)

    def _finish(self, receipt: Receipt, cause: str, detail: str) -> None:
        """Ends a receipt that nobody will try again: unknown if any attempt was, refused otherwise."""
        self._window.leave(receipt)
        if receipt._uncertain is not None:
            receipt._end(UNKNOWN, f"message {receipt.id} may be stored in {self.topic!r}: {receipt._uncertain}")
        else:
            receipt._end(REFUSED, f"message {receipt.id} is not stored in {self.topic!r}: {detail}", cause)
        if receipt._on_end is not None:
            self._window.ended.append(receipt)

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
                again = self._window.again[:]
                self._window.again.clear()
            if again:
                again.sort(key=lambda receipt: receipt._taken_at)
                self._window.backlog.extendleft(reversed(again))
                if self._session is not None and not self._session.over:
                    self._resume_at = time.monotonic() + next(self._backoff)

    def _feed_blocking(self) -> None:
        """For a blocking sender: the call is made without the lock, so that users can go on handing over."""
        while not self._closed:
            session = self._session
            with self._lock:
                if session is None or session.over or not self._window.backlog or time.monotonic() < self._resume_at:
                    return
                self._offered = self._next_batch()
            batch = self._offered
            taken = self._offer(session, batch)
            with self._lock:
                self._offered = []
                self._window.backlog.extendleft(reversed(batch[taken:]))
            if not self._tracked and self._waiting:
                with self._room:
                    self._room.notify_all()
            if taken < len(batch):
                return

    def _expire(self) -> None:
        late = time.monotonic() - self._delivery_timeout
        with self._lock, self._outcomes:
            while self._window.backlog and self._window.backlog[0]._taken_at <= late:
                receipt = self._window.backlog.popleft()
                why = f"not handed over within the delivery timeout of {self._delivery_timeout} s"
                if self._tracked:
                    self._finish(receipt, Cause.UNREACHABLE, why)
                else:
                    self._window.leave(receipt)
                    self._drop(why)
            receipts = self._session.receipts if self._session is not None else {}
            while receipts:
                number = next(iter(receipts))
                if receipts[number]._taken_at > late:
                    break
                self._unanswered(receipts.pop(number))
            posted = self._window.posted
            while posted and posted[0]._taken_at <= late and not posted[0]._told():
                self._unanswered(posted.popleft())
        if self._waiting:
            with self._room:
                self._room.notify_all()

    def _unanswered(self, receipt: Receipt) -> None:
        receipt._uncertain = f"no answer within the delivery timeout of {self._delivery_timeout} s"
        self._finish(receipt, Cause.TIMED_OUT, receipt._uncertain)

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

    def _lost(self, reason: str) -> None:
        if self._session is not None:
            self._session.disconnected(reason)

    def _disconnected(self, session: _Session, reason: str) -> None:
        if not self._closed:
            self._report(EventKind.DISCONNECTED, reason)
        self._wake.set()

    def _reconnect(self) -> None:
        with self._lock:
            old, self._session = self._session, None
            self._window.post = None
        if old is not None:
            old.sender.close(1.0)
            # A driver owes every outcome before it ends its session; what it forgot may be stored.
            with self._outcomes:
                for receipt in self._forgotten(old):
                    receipt._uncertain = "the session ended without an answer"
                    self._window.again.append(receipt)
            self._backoff = backoffs()
            self._resume_at = 0.0
        if time.monotonic() < self._resume_at:
            return
        try:
            session = self._open()
        except BrokerkitError as error:
            self._resume_at = time.monotonic() + next(self._backoff)
            with self._outcomes:
                if not self._tracked and self._window.backlog:
                    for receipt in self._window.backlog:
                        self._window.leave(receipt)
                        self._drop(str(error))
                    self._window.backlog.clear()
            return
        self._resume_at = 0.0
        self._backoff = backoffs()
        self._announced = False
        with self._lock:
            self._session = session
            self._window.post = session.sender.post
        self._put_again()
        self._report(EventKind.RECONNECTED, f"sending to {self.topic!r} again")
        self._wake.set()

    def _forgotten(self, session: _Session) -> list[Receipt]:
        """What a session that is closed never told the end of. Under `_outcomes`."""
        failed, left = self._window.clear()
        for receipt in failed:
            self._failed(receipt, receipt._outcome)
        left += session.receipts.values()
        session.receipts.clear()
        return left

    def _give_up(self, session: _Session | None) -> int:
        """After close: whatever has no end yet gets one."""
        with self._outcomes:
            forgotten = self._forgotten(session) if session is not None else []
            left = [*self._window.again, *self._window.backlog]
            self._window.again.clear()
            self._window.backlog.clear()
            for receipt in forgotten:
                receipt._uncertain = "the producer was closed before the broker answered"
                left.append(receipt)
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
