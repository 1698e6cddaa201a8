"""Sending: pipelined publishes, confirms as ranges, returns, nacks, delays.

The user's thread hands messages over; one callback on the I/O thread takes all there are, encodes them, and writes
many at once. Numbers (the contract's, from 0) and publish tags (the broker's, from 1) go side by side; a message that
is refused here has a number and no tag.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from pika.channel import Channel

from brokerkit.driver import Cause, Confirmed, Outcome, Outcomes, Refused, Sender, SenderEvents, Unknown
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message
from brokerkit_rabbitmq import topology
from brokerkit_rabbitmq.encoding import Unsendable, content, publish_method, sent_id
from brokerkit_rabbitmq.session import ACK, CHANNEL, NACK, RETURN, Inbox, Session
from brokerkit_rabbitmq.settings import RabbitSettings

_WRITE = 256 * 1024
"""Bytes that are joined for one write."""
_UNSENT = 8 * 1024 * 1024
"""Bytes waiting for the socket, beyond which a sender is full."""
_DELAY_KNOWN = 30.0
"""Seconds until a delay's queue is declared again, so that it does not expire in use."""

_TAG = struct.Struct(">QB").unpack_from


class RabbitSender(Sender):
    """Publishes to `route`, whose exchange is known to exist."""

    def __init__(
        self,
        session: Session,
        route: topology.Route,
        guarantee: Guarantee,
        settings: RabbitSettings,
        outcomes: Outcomes,
        events: SenderEvents,
    ) -> None:
        self._session = session
        self._route = route
        self._confirming = guarantee is not Guarantee.AT_MOST_ONCE
        self._mode = b"\x02" if settings.persistent else b"\x01"
        self._max_body = settings.max_body_bytes
        self._new_queue_wait = settings.new_queue_wait
        self._outcomes = outcomes
        self._events = events
        self._inbox: Inbox[tuple[Sequence[Message], float]] = Inbox(session, self._drain)
        self._bytes_in = self._bytes_out = 0
        """Handed over, and taken from there by the I/O thread."""
        self._blocked = False
        # The I/O thread's own from here on.
        self._number = self._tag = 0
        """Of the next message, and of the last that was published."""
        self._out: dict[int, tuple[int, str]] = {}
        """Number and id of what is published and has no outcome, by tag."""
        self._low = 1
        """No tag below it waits for the broker."""
        self._returns: dict[str, tuple[set[int], int]] = {}
        """For ids that came back: the tags that may be meant, and how many did."""
        self._stored: list[int] = []
        self._ended: list[Outcome] = []
        self._delays: dict[int, tuple[bytes, float, float]] = {}
        """For each delay in ms its publish method, until when its queue is known to be there, and from when on it is
        trusted."""
        self._new: dict[int, float] = {}
        """Tags that went to a delay's queue which may be new, and when a confirm of it can be trusted."""
        self._idle: Callable[[Any], None] | None = None
        """To be called once nothing is out, when somebody waits for that."""

        connection = session.connection
        self._frame_max = connection.params.frame_max
        self._method = self._publishing(*route)
        connection.methods = {ACK: partial(self._on_confirm, True), NACK: partial(self._on_confirm, False)}
        connection.contents = {RETURN: self._on_return}
        connection.after_read = self._report
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        if self._confirming:
            session.call(Channel.confirm_delivery, lambda _: None)
        session.tell(self._on_end, events.disconnected)

    # ------------------------------------------------------------ the layer's threads

    def send(self, messages: Sequence[Message], delay: float = 0.0) -> int:
        if self._blocked or self._bytes_in - self._bytes_out + self._session.unsent() > _UNSENT:
            return 0
        self._inbox.put((messages, delay))
        for message in messages:
            self._bytes_in += len(message[0] or b"")
        return len(messages)

    def close(self, timeout: float) -> None:
        self._session.close(timeout, self._when_idle)

    # ------------------------------------------------------------ the I/O thread: out

    def _drain(self) -> None:
        pieces: list[bytes] = []
        size = 0
        for messages, delay in self._inbox.take():
            for message in messages:
                number = self._number
                self._number = number + 1
                length = len(message[0] or b"")
                self._bytes_out += length
                try:
                    if length > self._max_body:
                        why = f"{length} bytes, and the broker takes {self._max_body} (max_body_bytes)"
                        raise Unsendable(why, Cause.TOO_LARGE)
                    method, trusted = self._delayed(delay) if delay else (self._method, 0.0)
                    frames = content(message, CHANNEL, self._mode, self._frame_max)
                except Unsendable as why_not:
                    self._ended.append(Refused(number, number, why_not.cause, str(why_not)))
                    continue
                if self._confirming:
                    self._tag += 1
                    self._out[self._tag] = number, message[1]
                    if trusted:
                        self._new[self._tag] = trusted
                pieces.append(method)
                pieces += frames
                size += length + 200
            if size > _WRITE:
                self._session.write(b"".join(pieces))
                pieces.clear()
                size = 0
        if pieces:
            self._session.write(b"".join(pieces))
        self._report()

    def _publishing(self, exchange: str, routing_key: str) -> bytes:
        return publish_method(CHANNEL, exchange, routing_key, self._confirming)

    def _delayed(self, delay: float) -> tuple[bytes, float]:
        """The publish method for the queue that holds messages for this delay, declared first where needed, and from
        when on its confirms are to be trusted, unless they are already."""
        if delay > topology.LONGEST_DELAY:
            raise Unsendable(f"RabbitMQ delays a message by at most {topology.LONGEST_DELAY:.0f} s")
        milliseconds = topology.coarse(math.ceil(delay * 1000))
        now = time.monotonic()
        method, until, trusted = self._delays.get(milliseconds, (b"", 0.0, now + self._new_queue_wait))
        if now >= until:
            name, arguments = topology.delay_queue(self._route, milliseconds)
            self._session.channel.queue_declare(name, durable=True, arguments=arguments)
            method = self._publishing("", name)
            self._delays[milliseconds] = method, now + _DELAY_KNOWN, trusted
        return method, trusted if now < trusted else 0.0

    # ------------------------------------------------------------ the I/O thread: in

    def _on_confirm(self, stored: bool, arguments: bytes) -> None:
        tag, bits = _TAG(arguments)
        tags = range(self._low, tag + 1) if bits & 1 else (tag,)
        for each in tags:
            sent = self._out.pop(each, None)
            if sent is None:
                continue
            number, id = sent
            if self._returns and (outcome := self._returned(each, number, id)) is not None:
                self._ended.append(outcome)
            elif stored and each in self._new:
                self._out[each] = sent
                wait = max(0.0, self._new[each] - time.monotonic())
                self._session.connection.ioloop.call_later(wait, partial(self._trust, each))
            elif stored:
                self._stored.append(number)
            else:
                self._ended.append(Unknown(number, number, Cause.NACKED, "the broker could not store it and nacked it"))
        if tags[0] == self._low:
            self._low = tag + 1

    def _trust(self, tag: int) -> None:
        """The queue that a message went to is no longer new: what the broker said of it holds."""
        self._new.pop(tag, None)
        sent = self._out.pop(tag, None)
        if sent is not None:
            self._stored.append(sent[0])
            self._report()

    def _on_return(self, _: bytes, header: bytes, __: bytes) -> None:
        """A return names its message by id alone, and comes before its confirm."""
        id = sent_id(header)
        tags, count = self._returns.get(id, (set(), 0))
        tags.update(tag for tag, (_, known) in self._out.items() if known == id)
        self._returns[id] = tags, count + 1

    def _returned(self, tag: int, number: int, id: str) -> Outcome | None:
        """The outcome of a message of which a copy came back. Where several of one id were out, nobody can tell which
        it was: all of them if all came back, otherwise each is unknown."""
        tags, count = self._returns.get(id, (set(), 0))
        if tag not in tags:
            return None
        if not any(each in self._out for each in tags):
            del self._returns[id]
        if count >= len(tags):
            return Refused(number, number, Cause.UNROUTABLE, _UNROUTABLE)
        return Unknown(number, number, Cause.UNROUTABLE, "one of several with this id was returned as unroutable")

    def _report(self) -> None:
        """Once after each read: one call with everything that it brought."""
        if self._stored:
            self._ended += _ranges(self._stored)
            self._stored = []
        if self._ended:
            ended, self._ended = self._ended, []
            self._outcomes(ended)
        if self._idle is not None and not self._out:
            self._idle(None)

    def _when_idle(self, _: Any, callback: Callable[[Any], None]) -> None:
        self._idle = callback
        self._drain()

    def _on_blocked(self, _: Any, method: Any) -> None:
        self._blocked = True
        self._events.blocked(str(method.method.reason))

    def _on_unblocked(self, *_: Any) -> None:
        self._blocked = False
        self._events.unblocked()

    def _on_end(self, reason: str) -> None:
        """The session is over: everything outstanding gets its outcome."""
        self._ended += [Unknown(number, number, Cause.DISCONNECTED, reason) for number, _ in self._out.values()]
        self._out.clear()
        unwritten = sum(len(messages) for messages, _ in self._inbox.take())
        if unwritten:
            last = self._number + unwritten - 1
            why = f"not written: {reason}"
            self._ended.append(Refused(self._number, last, Cause.UNREACHABLE, why, self._confirming))
        self._report()


def _ranges(numbers: list[int]) -> Iterator[Confirmed]:
    numbers.sort()
    first = last = numbers[0]
    for number in numbers:
        if number > last + 1:
            yield Confirmed(first, last)
            first = number
        last = number
    yield Confirmed(first, last)


_UNROUTABLE = "returned as unroutable: no subscription (queue) is bound for it"
