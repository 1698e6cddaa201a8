"""Receiving: deliveries from queues of one channel, acks coalesced over settled prefixes, ends told by barriers.

The token of a delivery is its tag, which belongs to this session's only channel and is never used on another.
basic.ack has no answer, so an ack is `sent`; a later synchronous reply on the same channel (basic.qos) makes it
`settled`.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, takewhile
from typing import Any

from pika.channel import Channel

from brokerkit.driver import End, Incoming, Nack, Receiver, ReceiverEvents, Reject, Settled, Settlement, Token, Traits
from brokerkit.errors import Closed, ConnectionLost, NotSupported
from brokerkit_rabbitmq.encoding import RabbitIncoming
from brokerkit_rabbitmq.session import CHANNEL, DELIVER, Inbox, Session

_SOON = 0.02
"""Seconds an ack waits for earlier deliveries to be settled too before it goes out alone, and for the question whether
it has been taken."""
_AWAY = 0.25
"""Seconds without new deliveries after some were given back unstarted."""

_TAG = struct.Struct(">QB").unpack_from
_METHOD = struct.Struct(">BHIHHQBB").pack
_ACK, _REJECT, _NACK = 80, 90, 120
_MULTIPLE, _REQUEUE_REJECTED, _REQUEUE = 1, 1, 2

Answered = Callable[[Any], None]


def _ignore(_: Any) -> None:
    pass


class RabbitReceiver(Receiver):
    """Consumes from `queues`, by topic."""

    def __init__(
        self,
        session: Session,
        queues: Mapping[str, str],
        traits: Traits,
        settled: Settled,
        events: ReceiverEvents,
        *,
        most_once: bool,
        prefetch: int,
        prefetch_bytes: int,
    ) -> None:
        self.traits = traits
        self._session = session
        self._queues = queues
        self._settled = settled
        self._events = events
        self._most_once = most_once
        self._bound = prefetch_bytes
        self._buffer: deque[RabbitIncoming] = deque()
        self._news = threading.Event()
        """Something arrived, or the end."""
        self._inbox: Inbox[tuple[Sequence[Token], Sequence[Nack]]] = Inbox(session, self._drain)
        self._closed = False
        # The I/O thread's own from here on.
        self._window = max(1, min(prefetch // len(queues), 65535))
        """Deliveries that each queue may have out."""
        self._topics: dict[bytes, str] = {}
        """By consumer tag."""
        self._held: dict[int, int] = {}
        """Body sizes of what is not settled on the wire, by tag, in order."""
        self._weight = 0
        """Their sum."""
        self._acks: set[int] = set()
        """Of these, what is to be acked."""
        self._unasked: list[int] = []
        """On the wire, and no answer asked for yet."""
        self._asked: deque[list[int]] = deque()
        """What each open question is about."""
        self._due = False
        self._paused = self._giving_back = False
        self._resume_at = 0.0

        session.channel.add_on_cancel_callback(self._on_cancel)
        session.connection.contents = {DELIVER: self._take}
        session.call(Channel.basic_qos, prefetch_count=self._window)
        for topic, queue in queues.items():
            session.call(Channel.queue_declare, queue, passive=True)
            session.call(self._consume, topic)
        session.tell(self._on_end, events.disconnected)

    # ------------------------------------------------------------ the layer's threads

    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        buffer = self._buffer
        if timeout and not (buffer and max_messages):
            self._news.clear()
            if not (buffer and max_messages) and not self._closed and self._session.over is None:
                self._news.wait(timeout)
        if self._closed:
            raise Closed("the receiver is closed")
        if self._session.over is not None:
            raise ConnectionLost(self._session.over)
        return [buffer.popleft() for _ in range(min(len(buffer), max_messages))]

    def settle(
        self,
        acks: Sequence[Token] = (),
        nacks: Sequence[Nack] = (),
        rejects: Sequence[Reject] = (),
    ) -> None:
        if rejects:
            raise NotSupported("RabbitMQ's own dead-lettering keeps no reason: the layer sends to the dead letters")
        self._inbox.put((acks, nacks))

    def flush(self, timeout: float) -> None:
        self._session.call(self._settle_all, within=timeout)

    def close(self, timeout: float) -> None:
        self._closed = True
        self._news.set()
        self._session.close(timeout, self._give_back)

    # ------------------------------------------------------------ the I/O thread: in

    def _consume(self, channel: Any, topic: str, callback: Answered = _ignore) -> None:
        tag = channel.basic_consume(self._queues[topic], lambda *_: None, callback=callback)
        self._topics[tag.encode()] = topic

    def _take(self, method: bytes, header: bytes, body: bytes) -> None:
        after = 1 + method[0]
        tag, redelivered = _TAG(method, after)
        weight = self._weight + len(body)
        heavy = weight > self._bound and self._held
        if heavy:
            self._stop_for_weight()
        if heavy and self._session.version >= (4, 3) and not self._most_once and not self._giving_back:
            self._write(_NACK, tag, _REQUEUE)
        elif redelivered and self._most_once and _maybe_seen(header):
            self._write(_ACK, tag, 0)
        else:
            self._held[tag] = len(body)
            self._weight = weight
            self._buffer.append(
                RabbitIncoming(self._topics[method[1:after]], tag, bool(redelivered), method, header, body)
            )
            if len(self._buffer) == 1:  # nobody waits while there is something
                self._news.set()

    def _stop_for_weight(self) -> None:
        """AMQP bounds messages and not bytes. Over the bound the flow stops until half of it is settled, and goes on
        with a window of as many as were held. What is on its way meanwhile goes back where that burns no attempt
        (4.3), and is held otherwise."""
        if not self._paused:
            self._window = max(1, min(self._window, len(self._held) // len(self._queues)))
        self._pause()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            channel = self._session.channel
            for tag in channel.consumer_tags:
                channel.basic_cancel(tag, callback=self._on_cancelled)

    def _on_cancelled(self, answer: Any) -> None:
        """All that the consumer was sent has come."""
        self._topics.pop(answer.method.consumer_tag.encode(), None)

    def _resume(self) -> None:
        """Lets the flow go on where nothing stands against it."""
        waits = self._weight > self._bound // 2 or time.monotonic() < self._resume_at
        if self._paused and not (waits or self._giving_back or self._session.over):
            self._paused = False
            self._ask()
            for topic in self._queues:
                self._consume(self._session.channel, topic)

    def _on_cancel(self, _: Any) -> None:
        reason = (
            "RabbitMQ cancelled the consumer: a delivery was held longer than the consumer timeout "
            "(declare with handling_seconds=), or the queue was deleted or moved"
        )
        self._lose(reason)
        self._session.end(ConnectionLost(reason))

    def _lose(self, reason: str) -> None:
        held = [tag for tag in self._held if tag not in self._acks]
        if held:
            self._events.lease_lost(held, reason)

    # ------------------------------------------------------------ the I/O thread: settling

    def _write(self, method: int, tag: int, bits: int) -> None:
        self._session.write(_METHOD(1, CHANNEL, 13, 60, method, tag, bits, 0xCE))

    def _drain(self) -> None:
        failed: list[int] = []
        unstarted: list[int] = []
        for acks, nacks in self._inbox.take():
            self._acks.update(acks)
            for nack in nacks:
                (unstarted if nack.unstarted else failed).append(nack.token)
        # 4.3 counts a reject as a failed attempt and a nack not; older ones count both.
        for tag in failed:
            self._write(_REJECT, tag, _REQUEUE_REJECTED)
        self._sent(failed)
        self._ack_prefix()
        if unstarted:
            self._return(unstarted)
        if self._acks:
            self._soon()

    def _ack_prefix(self) -> None:
        """One ack for everything up to the first delivery that is not settled."""
        prefix = list(takewhile(self._acks.__contains__, self._held))
        if prefix:
            self._write(_ACK, prefix[-1], _MULTIPLE)
            self._sent(prefix)

    def _ack_alone(self) -> None:
        """Acks one by one what waits behind a delivery that is still being handled."""
        alone = sorted(self._acks)
        for tag in alone:
            self._write(_ACK, tag, 0)
        self._sent(alone)

    def _return(self, tags: list[int]) -> None:
        """Gives back unstarted ones, in one method where nobody holds an earlier delivery. The flow stops meanwhile, or
        the same would come back here; usually the consumer is closing."""
        self._pause()
        self._resume_at = time.monotonic() + _AWAY
        self._session.connection.ioloop.call_later(_AWAY, self._resume)
        self._ack_alone()
        last = max(tags)
        if set(tags).issuperset(tag for tag in self._held if tag <= last):
            self._write(_NACK, last, _MULTIPLE | _REQUEUE)
        else:
            for tag in tags:
                self._write(_NACK, tag, _REQUEUE)
        self._sent(tags)

    def _sent(self, tags: list[int]) -> None:
        if tags:
            self._weight -= sum(map(self._held.pop, tags))
            self._acks.difference_update(tags)
            self._unasked += tags
            self._settled([Settlement(tags, End.SENT)])
            self._resume()
            self._soon()

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            self._session.connection.ioloop.call_later(_SOON, self._on_time)

    def _on_time(self) -> None:
        if self._session.over is None and self._session.channel.is_open:
            self._ack_alone()
            self._ask()
        self._due = False

    def _ask(self, callback: Answered = _ignore) -> None:
        """A synchronous method; its answer says that everything before it was taken. Sets what is set already."""
        asked, self._unasked = self._unasked, []

        def answered(method: Any) -> None:
            self._asked.popleft()
            if asked:
                self._settled([Settlement(asked, End.SETTLED)])
            callback(method)

        self._asked.append(asked)
        self._session.channel.basic_qos(prefetch_count=self._window, callback=answered)

    def _settle_all(self, _: Any, callback: Answered) -> None:
        self._drain()
        self._ack_alone()
        self._ask(callback)

    def _give_back(self, _: Any, callback: Answered) -> None:
        """Stops the flow, returns what nobody looked at, and waits until the broker has taken it all.

        The order matters on quorum queues. Beyond 32 single settlements the broker's channel keeps the rest to itself
        for a moment, and drops them when it closes, answered or not. A cancel goes through the queue, so what came
        before it is out of the channel at the next answer; the rest is given back in one method.
        """

        def stopped(_: Any) -> None:
            if self._held:
                self._write(_NACK, max(self._held), _MULTIPLE | _REQUEUE)
            self._ask(callback)

        self._giving_back = True
        self._drain()
        self._ack_alone()
        self._pause()
        self._ask(stopped)

    def _on_end(self, reason: str) -> None:
        """The session is over: everything handed in gets its end."""
        if "timed out" in reason and "acknowledgement" in reason:
            self._lose(reason)
        lost: list[Token] = sorted(self._acks)
        for acks, nacks in self._inbox.take():
            lost += [*acks, *(nack.token for nack in nacks)]
        if lost:
            self._settled([Settlement(lost, End.LOST, reason)])
        unanswered = [*chain(*self._asked), *self._unasked]
        if unanswered:
            self._settled([Settlement(unanswered, End.UNKNOWN, reason)])
        self._news.set()


def _maybe_seen(header: bytes) -> bool:
    """Whether a redelivered message may have been handed to a user. 4.3 tells what was given back unstarted from what
    a dead consumer held: only the latter has a delivery count."""
    return b"x-acquired-count" not in header or b"x-delivery-count" in header
