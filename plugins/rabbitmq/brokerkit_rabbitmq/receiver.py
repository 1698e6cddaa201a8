"""Receiving: deliveries from queues of one channel, acks coalesced over settled prefixes, ends told by barriers.

The token of a delivery is its tag, which belongs to this session's only channel and is never used on another.
basic.ack has no answer, so an ack is `sent`; a later synchronous reply on the same channel (basic.qos) makes it
`settled`.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from brokerkit.driver import (
    End,
    Incoming,
    Nack,
    Receiver,
    ReceiverEvents,
    Reject,
    Settled,
    Settlement,
    Token,
    Traits,
)
from brokerkit.errors import Closed, ConnectionLost, NotSupported
from brokerkit_rabbitmq.encoding import RabbitIncoming
from brokerkit_rabbitmq.session import Session

_GAP = 0.01
"""Seconds an ack waits for earlier deliveries to be settled too, before it goes out alone."""
_BARRIER = 0.05
"""Seconds between two questions whether what was sent has been taken."""

_TAG = struct.Struct(">QB").unpack_from
_CLOSING = 0.25
"""Seconds without new deliveries after some were given back unstarted."""

_METHOD = struct.Struct(">BHIHHQBB").pack
ACK, REJECT, NACK = 80, 90, 120


class RabbitReceiver(Receiver):
    def __init__(
        self, settled: Settled, events: ReceiverEvents, prefetch: int, prefetch_bytes: int, most_once: bool
    ) -> None:
        self.traits = Traits()
        self._settled = settled
        self._events = events
        self._bound = prefetch_bytes
        self._heavy_from = prefetch_bytes // prefetch
        """Bodies up to this size cannot pass the bound, however many are held."""
        self._most_once = most_once
        self._session: Session = None  # type: ignore[assignment]
        self._buffer: deque[RabbitIncoming] = deque()
        self._arrived = threading.Event()
        self._waiting = False
        self._lock = threading.Lock()
        self._settles: deque[tuple[Sequence[Token], Sequence[Nack]]] = deque()
        self._scheduled = False
        self._closed = False
        self._started = False
        # The I/O thread's own from here on.
        self._low = 1
        """The lowest tag that is not settled on the wire."""
        self._high = 0
        """The highest tag received."""
        self._acks: set[int] = set()
        """To be acked, not on the wire yet."""
        self._done: set[int] = set()
        """Above `_low`, and settled on the wire."""
        self._sent: list[int] = []
        """On the wire, and no answer asked for yet."""
        self._asked: list[list[int]] = []
        """What each open question is about."""
        self._gap_due = self._barrier_due = False
        self._topics: dict[bytes, str] = {}
        """By consumer tag."""
        self._giving_back = False
        self._heavy: dict[int, int] = {}
        """Sizes of the large bodies that are held."""
        self._weight = 0
        self._heaviest = 1
        self._paused = False

    def start(self, session: Session, queues: Mapping[str, str], window: int, timeout: float) -> None:
        """Consumes from `queues` (by topic), each within `window` unsettled deliveries."""
        self._session = session
        self._window = window
        self._queues = queues
        self._channel = int(session.channel.channel_number)
        session.channel.add_on_cancel_callback(self._on_cancel)
        session.connection.deliveries = self._take
        deadline = time.monotonic() + timeout

        def ask(request: Callable[[Any, Callable[[Any], None]], object]) -> Any:
            return session.call(request, max(0.1, deadline - time.monotonic()))

        ask(lambda channel, answered: channel.basic_qos(prefetch_count=window, callback=answered))
        for topic, queue in queues.items():
            ask(partial(self._find, queue))
            ask(partial(self._consume, topic, queue))
        self._started = True

    # ------------------------------------------------------------ the layer's threads

    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        buffer = self._buffer
        if timeout and (not buffer or max_messages <= 0):
            self._arrived.clear()
            self._waiting = max_messages > 0
            if self._alive() and not (buffer and max_messages > 0):
                self._arrived.wait(timeout)
            self._waiting = False
        self._check()
        return [buffer.popleft() for _ in range(min(len(buffer), max_messages))]

    def settle(
        self,
        acks: Sequence[Token] = (),
        nacks: Sequence[Nack] = (),
        rejects: Sequence[Reject] = (),
    ) -> None:
        if rejects:
            raise NotSupported("RabbitMQ's own dead-lettering keeps no reason: the layer sends to the dead letters")
        with self._lock:
            if self._session.over is not None:
                raise ConnectionLost(self._session.over)
            self._settles.append((acks, nacks))
            if self._scheduled:
                return
            self._scheduled = True
        self._session.post(self._drain)

    def flush(self, timeout: float) -> None:
        def ask(_: Any, answered: Callable[[Any], None]) -> None:
            self._drain()
            self._close_gaps()
            self._ask(answered)

        self._session.call(ask, timeout)

    def close(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        session = self._session
        self._closed = session.closing = True
        self._arrived.set()
        if session.over is None:
            try:
                session.call(self._give_back, max(0.1, timeout * 0.8))
            except ConnectionLost:
                # Over, or no answer in time: closing the channel gives everything back.
                pass
        session.close(max(0.1, deadline - time.monotonic()))

    def _alive(self) -> bool:
        return self._session.over is None and not self._closed

    def _check(self) -> None:
        if self._closed:
            raise Closed("the receiver is closed")
        if self._session.over is not None:
            raise ConnectionLost(self._session.over)

    # ------------------------------------------------------------ the I/O thread: in

    def _find(self, queue: str, channel: Any, answered: Callable[[Any], None]) -> None:
        channel.queue_declare(queue, passive=True, callback=answered)

    def _consume(self, topic: str, queue: str, channel: Any, answered: Callable[[Any], None]) -> None:
        tag = f"brokerkit-{os.urandom(8).hex()}"
        self._topics[tag.encode()] = topic
        channel.basic_consume(queue, lambda *_: None, consumer_tag=tag, callback=answered)

    def _take(self, method: bytes, header: bytes, body: bytes) -> None:
        after = 1 + method[0]
        tag, redelivered = _TAG(method, after)
        self._high = tag
        if self._giving_back:
            return
        if len(body) > self._heavy_from and self._too_heavy(tag, len(body)):
            self._write(NACK, tag, 2)
            self._done.add(tag)
        elif redelivered and self._most_once and self._maybe_seen(header):
            self._write(ACK, tag, 0)
            self._done.add(tag)
        else:
            topic = self._topics[method[1:after]]
            self._buffer.append(RabbitIncoming(topic, tag, bool(redelivered), method, header, body))
            if self._waiting:
                self._arrived.set()

    def _maybe_seen(self, header: bytes) -> bool:
        """Whether a redelivered message may have been handed to a user. 4.3 tells what was given back unstarted from
        what a dead consumer held: only the latter has a delivery count."""
        return b"x-acquired-count" not in header or b"x-delivery-count" in header

    def _too_heavy(self, tag: int, size: int) -> bool:
        """Weighs a large body. Over the bound the flow stops until half of it is settled, and then goes on with a
        smaller window, for AMQP bounds messages and not bytes. What is on its way meanwhile goes back where that
        burns no attempt (4.3), and is held otherwise."""
        self._heaviest = max(self._heaviest, size)
        if self._weight + size > self._bound and self._heavy:
            self._pause()
            if self._session.version >= (4, 3) and not self._most_once:
                return True
        self._heavy[tag] = size
        self._weight += size
        return False

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            for consumer in self._topics:
                if consumer.decode() in self._session.channel.consumer_tags:
                    self._session.channel.basic_cancel(consumer.decode())

    def _lighter(self, tags: Iterable[int]) -> None:
        for tag in tags:
            self._weight -= self._heavy.pop(tag, 0)
        self._resume()

    def _resume(self) -> None:
        """Lets the flow go on, with a window that the sizes seen fit into."""
        if not self._paused or self._giving_back or self._weight > self._bound // 2 or self._session.over is not None:
            return
        self._paused = False
        if self._heaviest > self._heavy_from:
            self._window = max(1, min(self._window, self._bound // self._heaviest // len(self._queues)))
        for old in list(self._topics)[: -4 * len(self._queues)]:
            del self._topics[old]
        self._ask(lambda _: None)
        for topic, queue in self._queues.items():
            self._consume(topic, queue, self._session.channel, lambda _: None)

    def _on_cancel(self, _: Any) -> None:
        reason = (
            "RabbitMQ cancelled the consumer: a delivery was held longer than the consumer timeout "
            "(declare with handling_seconds=), or the queue was deleted or moved"
        )
        self._lose(reason)
        self._session.end(ConnectionLost(reason))

    def _lose(self, reason: str) -> None:
        held = [tag for tag in range(self._low, self._high + 1) if tag not in self._done and tag not in self._acks]
        if held:
            self._events.lease_lost(held, reason)

    # ------------------------------------------------------------ the I/O thread: settling

    def _write(self, method: int, tag: int, bits: int) -> None:
        """Ack (bit 0: multiple), reject (bit 0: requeue) or nack (bit 0: multiple, bit 1: requeue)."""
        self._session.write(_METHOD(1, self._channel, 13, 60, method, tag, bits, 0xCE))

    def _drain(self) -> None:
        self._scheduled = False
        if self._session.over is not None:
            self._report_lost()
            return
        failed: list[int] = []
        unstarted: list[int] = []
        while self._settles:
            acks, nacks = self._settles.popleft()
            self._acks.update(acks)
            for nack in nacks:
                (unstarted if nack.unstarted else failed).append(nack.token)
        # 4.3 counts a reject as a failed attempt and a nack not; older ones count both.
        for tag in failed:
            self._write(REJECT, tag, 1)
        self._done.update(failed)
        self._tell_sent([*failed, *self._ack_prefix()])
        if unstarted:
            self._return_unstarted(unstarted)
        if self._acks and not self._gap_due:
            self._gap_due = True
            self._session.connection.ioloop.call_later(_GAP, self._on_gap)

    def _return_unstarted(self, tags: list[int]) -> None:
        """Gives back in one method where nobody holds an earlier delivery. The flow stops meanwhile, or the same
        deliveries would come back here; usually the consumer is closing."""
        self._pause()
        self._session.connection.ioloop.call_later(_CLOSING, self._resume)
        self._close_gaps()
        known = set(tags)
        if all(tag in known or tag in self._done for tag in range(self._low, max(tags) + 1)):
            self._write(NACK, max(tags), 3)
        else:
            for tag in tags:
                self._write(NACK, tag, 2)
        self._done.update(tags)
        self._tell_sent(tags)

    def _ack_prefix(self) -> list[int]:
        """One ack for everything up to the first delivery that is not settled."""
        low, acks, done = self._low, self._acks, self._done
        acked: list[int] = []
        while True:
            if low in acks:
                acked.append(low)
            elif low in done:
                done.remove(low)
            else:
                break
            low += 1
        if acked:
            acks.difference_update(acked)
            self._write(ACK, acked[-1], 1 if len(acked) > 1 else 0)
        self._low = low
        return acked

    def _on_gap(self) -> None:
        self._gap_due = False
        if self._session.over is None:
            self._close_gaps()

    def _close_gaps(self) -> None:
        """Acks one by one what waits behind a delivery that is still being handled."""
        if self._acks:
            alone = sorted(self._acks)
            for tag in alone:
                self._write(ACK, tag, 0)
            self._acks.clear()
            self._done.update(alone)
            self._tell_sent(alone)

    def _tell_sent(self, tags: list[int]) -> None:
        if not tags:
            return
        self._sent += tags
        if self._heavy:
            self._lighter(tags)
        self._settled([Settlement(tags, End.SENT)])
        if not self._barrier_due:
            self._barrier_due = True
            self._session.connection.ioloop.call_later(_BARRIER, self._on_barrier)

    def _on_barrier(self) -> None:
        self._barrier_due = False
        if self._session.over is None and self._session.channel.is_open:
            self._ask(lambda _: None)

    def _ask(self, answered: Callable[[Any], None]) -> None:
        """A synchronous method; its answer says that everything before it was taken. Sets what is set already."""
        asked, self._sent = self._sent, []

        def answer(method: Any) -> None:
            self._asked.remove(asked)
            if asked:
                self._settled([Settlement(asked, End.SETTLED)])
            answered(method)

        self._asked.append(asked)
        self._session.channel.basic_qos(prefetch_count=self._window, callback=answer)

    def _give_back(self, channel: Any, answered: Callable[[Any], None]) -> None:
        """Stops the flow, returns what nobody looked at, and waits until the broker has taken it all.

        The order matters on quorum queues. Beyond 32 single settlements the broker's channel keeps the rest to itself
        for a moment, and drops them when it closes, answered or not. A cancel goes through the queue, so what came
        before it is out of the channel at the next answer; the rest is given back in one method.
        """
        self._giving_back = True
        self._drain()
        self._close_gaps()

        def stopped(_: Any) -> None:
            self._buffer.clear()
            if self._high >= self._low:
                self._write(NACK, self._high, 3)
            self._ask(answered)

        self._pause()
        self._ask(stopped)

    def ended(self, reason: str) -> None:
        """The session is over: everything handed in gets its end. On the I/O thread."""
        if not self._started:
            return
        if "timed out" in reason and "acknowledgement" in reason:
            self._lose(reason)
        self._report_lost()
        sent = [*self._sent, *(tag for asked in self._asked for tag in asked)]
        if sent:
            self._settled([Settlement(sent, End.UNKNOWN, reason)])
        self._arrived.set()
        if not self._session.closing:
            self._events.disconnected(reason)

    def _report_lost(self) -> None:
        """What was handed in and never written."""
        with self._lock:
            left, self._settles = self._settles, deque()
        tokens: list[Token] = sorted(self._acks)
        self._acks.clear()
        for acks, nacks in left:
            tokens += acks
            tokens += (nack.token for nack in nacks)
        if tokens:
            self._settled([Settlement(tokens, End.LOST, self._session.over or "the session is over")])


def split(prefetch: int, queues: Iterable[str]) -> int:
    """Deliveries per queue, so that together they stay within `prefetch` where there is room for one each."""
    return max(1, min(prefetch // max(1, len(list(queues))), 65535))
