"""Sending: pipelined publishes, confirms as ranges, returns, nacks, delays.

The user's thread appends to a queue; one callback on the I/O thread drains it, encodes, and writes many messages at
once. Numbers (the contract's, from 0) and publish tags (the broker's, from 1) go side by side; a message that is
refused here has a number and no tag.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from pika import spec

from brokerkit.driver import Cause, Confirmed, Outcome, Outcomes, Refused, Sender, SenderEvents, Unknown
from brokerkit.errors import ConnectionLost
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message
from brokerkit_rabbitmq.encoding import Unsendable, content, publish_method
from brokerkit_rabbitmq.session import Session

_WRITE = 256 * 1024
"""Bytes that are joined for one write."""
_UNSENT = 8 * 1024 * 1024
"""Bytes waiting for the socket, beyond which a sender is full."""

Route = tuple[str, str]
"""Exchange and routing key."""
Delayed = Callable[[int], tuple[str, dict[str, Any]]]
"""For a delay in ms: the name and the arguments of the queue that holds messages so long."""


class RabbitSender(Sender):
    def __init__(
        self,
        route: Route,
        delayed: Delayed,
        guarantee: Guarantee,
        persistent: bool,
        max_body: int,
        outcomes: Outcomes,
        events: SenderEvents,
    ) -> None:
        self._route = route
        self._delayed = delayed
        self._confirming = guarantee is not Guarantee.AT_MOST_ONCE
        self._mode = b"\x02" if persistent else b"\x01"
        self._max_body = max_body
        self._outcomes = outcomes
        self._events = events
        self._lock = threading.Lock()
        self._queue: deque[tuple[Sequence[Message], float]] = deque()
        self._scheduled = False
        self._blocked = False
        self._bytes_in = 0
        self._bytes_out = 0
        self._session: Session = None  # type: ignore[assignment]
        # The I/O thread's own from here on.
        self._published = 0
        self._confirmed = 0
        """All tags up to this one have their outcome."""
        self._early: set[int] = set()
        """Tags above it that have theirs too."""
        self._ids: deque[str] = deque()
        """Message ids of the tags above it."""
        self._holes: list[int] = []
        """For each message refused here, the last tag before it."""
        self._returned: dict[int, Outcome | None] = {}
        self._ready: list[Outcome] = []
        self._first = self._last = 0
        self._delays: dict[float, tuple[bytes, float]] = {}
        self._copies: dict[str, int] = {}
        self._closed_at_zero = threading.Event()
        self._started = False

    def start(self, session: Session, timeout: float) -> None:
        """Turns the session into a sending one; the exchange is known to exist."""
        self._session = session
        connection = session.connection
        self._frame_max = connection.params.frame_max
        self._channel = int(session.channel.channel_number)
        self._method = publish_method(self._channel, *self._route, self._confirming)
        connection.after_read = self._report
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        if self._confirming:
            session.channel.add_on_return_callback(self._on_return)
            connection.confirms = self._on_confirm
            session.call(lambda channel, answered: channel.confirm_delivery(lambda _: None, callback=answered), timeout)
        self._started = True

    # ------------------------------------------------------------ the layer's threads

    def send(self, messages: Sequence[Message], delay: float = 0.0) -> int:
        session = self._session
        with self._lock:
            if session.over is not None:
                raise ConnectionLost(session.over)
            if self._blocked or self._bytes_in - self._bytes_out + session.unsent() > _UNSENT:
                return 0
            for message in messages:
                self._bytes_in += len(message[0] or b"")
            self._queue.append((messages, delay))
            if self._scheduled:
                return len(messages)
            self._scheduled = True
        session.post(self._drain)
        return len(messages)

    def close(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        session = self._session
        session.closing = True
        if session.over is None:
            session.post(self._note_zero)
            self._closed_at_zero.wait(max(0.0, timeout * 0.8))
        session.close(max(0.1, deadline - time.monotonic()))

    # ------------------------------------------------------------ the I/O thread: out

    def _drain(self) -> None:
        self._scheduled = False
        pieces: list[bytes] = []
        size = 0
        write = self._session.write
        while self._queue and self._session.over is None:
            messages, delay = self._queue.popleft()
            method = self._delay_method(delay) if delay else self._method
            for message in messages:
                length = len(message[0] or b"")
                self._bytes_out += length
                frames = self._frames(message, length, bool(method))
                if frames is None:
                    continue
                self._published += 1
                if self._confirming:
                    self._ids.append(message[1])
                pieces.append(method)
                pieces += frames
                size += length + 200
            if size > _WRITE:
                write(b"".join(pieces))
                pieces.clear()
                size = 0
        if pieces:
            write(b"".join(pieces))
        if self._ready:
            self._report()
        if self._session.closing:
            self._note_zero()

    def _frames(self, message: Message, length: int, possible: bool) -> list[bytes] | None:
        if not possible:
            self._refuse(Cause.INVALID, _TOO_LATE)
            return None
        if length > self._max_body:
            self._refuse(Cause.TOO_LARGE, f"{length} bytes, and the broker takes {self._max_body} (max_body_bytes)")
            return None
        try:
            return content(message, self._channel, self._mode, self._frame_max)
        except Unsendable as why:
            self._refuse(Cause.INVALID, str(why))
            return None

    def _refuse(self, cause: Cause, detail: str) -> None:
        """A number without a tag."""
        number = self._published + len(self._holes)
        self._holes.append(self._published)
        self._push(Refused(number, number, cause, detail))

    def _delay_method(self, delay: float) -> bytes:
        """The publish method for the queue that holds messages for this delay, declared first where needed."""
        now = time.monotonic()
        known = self._delays.get(delay)
        if known is not None and known[1] > now:
            return known[0]
        if delay > _LONGEST_DELAY:
            return b""
        name, arguments = self._delayed(math.ceil(delay * 1000))
        self._session.channel.queue_declare(name, durable=True, arguments=arguments)
        method = publish_method(self._channel, "", name, self._confirming)
        self._delays = {each: value for each, value in self._delays.items() if value[1] > now}
        self._delays[delay] = (method, now + 30.0)
        return method

    # ------------------------------------------------------------ the I/O thread: in

    def _on_confirm(self, method: Any) -> None:
        tag = int(method.delivery_tag)
        first = self._confirmed + 1 if method.multiple else tag
        if type(method) is spec.Basic.Ack and not (self._holes or self._returned or self._early):
            if first == self._confirmed + 1:
                self._confirm(first, tag)
                self._advance(tag)
            elif tag > self._confirmed:
                self._confirm(tag, tag)
                self._early.add(tag)
            return
        for each in range(first, tag + 1):
            if each > self._confirmed and each not in self._early:
                self._one(each, method)
                self._early.add(each)
        last = self._confirmed
        while last + 1 in self._early:
            last += 1
            self._early.remove(last)
        self._advance(last)

    def _one(self, tag: int, method: Any) -> None:
        """The outcome of one tag where tags and numbers differ, or something was returned."""
        number = tag - 1 + bisect_right(self._holes, tag - 1)
        if tag in self._returned:
            outcome = self._returned.pop(tag)
            self._push(outcome or Refused(number, number, Cause.UNROUTABLE, _UNROUTABLE))
        elif type(method) is spec.Basic.Nack:
            self._push(Unknown(number, number, Cause.NACKED, "the broker could not store it and nacked it"))
        else:
            self._push(Confirmed(number, number))

    def _confirm(self, first: int, last: int) -> None:
        """Tags in a row; joined with the row before. Only while numbers are tags less one."""
        if self._first and first == self._last + 1:
            self._last = last
            return
        if self._first:
            self._ready.append(Confirmed(self._first - 1, self._last - 1))
        self._first, self._last = first, last

    def _push(self, outcome: Outcome) -> None:
        self._join()
        self._ready.append(outcome)

    def _join(self) -> None:
        if self._first:
            self._ready.append(Confirmed(self._first - 1, self._last - 1))
            self._first = 0

    def _advance(self, last: int) -> None:
        ids = self._ids
        for _ in range(last - self._confirmed):
            ids.popleft()
        self._confirmed = last

    def _report(self) -> None:
        """Once after each read: one call with everything that it brought."""
        self._join()
        if self._ready:
            ready, self._ready = self._ready, []
            self._outcomes(ready)
        if self._session.closing:
            self._note_zero()

    def _on_return(self, _: Any, method: Any, properties: Any, __: bytes) -> None:
        """A return names its message by id alone, and comes before its confirm. Where several messages of one id
        are out, nobody can tell which came back: all of them if all did, otherwise each is unknown."""
        headers = properties.headers or {}
        id = headers.get("brokerkit-id") or properties.message_id
        tags = [
            tag
            for tag, known in enumerate(islice(self._ids, None), self._confirmed + 1)
            if known == id and tag not in self._early
        ]
        before = sum(1 for tag in tags if tag in self._returned)
        if len(tags) == 1:
            self._returned[tags[0]] = None
            return
        self._copies[id] = count = (self._copies.get(id, 0) if before else 0) + 1
        for tag in tags:
            number = tag - 1 + bisect_right(self._holes, tag - 1)
            self._returned[tag] = (
                None
                if count == len(tags)
                else Unknown(number, number, Cause.UNROUTABLE, "one of several with this id was returned as unroutable")
            )

    def _on_blocked(self, _: Any, method: Any) -> None:
        self._blocked = True
        self._events.blocked(str(method.method.reason))

    def _on_unblocked(self, *_: Any) -> None:
        self._blocked = False
        self._events.unblocked()

    def _note_zero(self) -> None:
        """Whether everything is out and answered, for `close`."""
        if not self._queue and (not self._confirming or self._confirmed == self._published):
            self._closed_at_zero.set()

    def ended(self, reason: str) -> None:
        """The session is over: everything outstanding gets its outcome. On the I/O thread."""
        if not self._started:
            return
        with self._lock:
            left, self._queue = self._queue, deque()
        self._join()
        if self._confirming:
            for tag in range(self._confirmed + 1, self._published + 1):
                if tag not in self._early:
                    number = tag - 1 + bisect_right(self._holes, tag - 1)
                    self._ready.append(Unknown(number, number, Cause.DISCONNECTED, reason))
        first = self._published + len(self._holes)
        unwritten = sum(len(messages) for messages, _ in left)
        if unwritten:
            last = first + unwritten - 1
            self._ready.append(Refused(first, last, Cause.UNREACHABLE, f"not written: {reason}", self._confirming))
        ready, self._ready = self._ready, []
        if ready:
            self._outcomes(ready)
        self._closed_at_zero.set()
        if not self._session.closing:
            self._events.disconnected(reason)


_LONGEST_DELAY = 48 * 24 * 3600.0
"""Seconds; a TTL is 32 bits of milliseconds."""
_TOO_LATE = f"RabbitMQ delays a message by at most {_LONGEST_DELAY:.0f} s"
_UNROUTABLE = "returned as unroutable: no subscription (queue) is bound for it"
