"""Receiving: unary pulls, batched acks, leases whose end is known here.

Unary pull rather than streaming pull: it hands out whole batches and keeps the bound in flight in the layer's hands,
and it is many times faster on emulators (benchmarks/). A pull stays under way between calls of `receive`, for
cancelling one would leave what it was about to bring leased to nobody.

The service accepts an ack of a lease that is over without a word, unless the subscription has exactly-once delivery.
So every delivery carries until when its lease lasts, and one that is over ends lost here. An ack without an answer is
sent again while the lease lasts: it is idempotent. The session ends when nothing was answered for a whole lease.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grpc
from grpc import StatusCode

from brokerkit.driver import End, Incoming, Nack, Receiver, ReceiverEvents, Reject, Settled, Settlement, Token, Traits
from brokerkit.errors import BrokerkitError, ConnectionLost, NotSupported
from brokerkit.guarantees import Guarantee
from brokerkit_pubsub.encoding import PubsubIncoming
from brokerkit_pubsub.errors import TRANSIENT, ack_failures, translated
from brokerkit_pubsub.link import (
    AcknowledgeRequest,
    GetSubscriptionRequest,
    Link,
    ModifyAckDeadlineRequest,
    PullRequest,
    answer_of,
)

_PULL = 20.0
"""Seconds a pull may wait at the service for a message."""
_IDS = 1000
"""Messages of one pull, and ack ids of one request, at most; the service takes half a MiB of them."""
_TOGETHER = 4
"""Pulls of one subscription under way at once, at most."""
_LEAST = 100
"""Messages that one of several pulls asks for at least."""
_REMEMBERED = 20_000
"""Acked messages that a session recognises when they come again with a nacked one of their key."""
_REWINDS_FOR = 60.0
"""Seconds after its delay within which a nacked message has come again."""
_AT_ONCE = 0.1
"""Seconds within which a pull is answered where there is more to be had."""
_MARGIN = 1.0
"""Seconds by which the service may take a lease to be over before we do: it began when the answer left, not when it
came. Seen on Google's emulator: 10 ms before the end by our clock, the message was with another consumer, and the ack
was accepted without a word."""
_STILL = 0.5
"""Seconds without a sign of life after which this process stood still. An answer that is found then may have lain
about since it did."""
_SIGN = 0.2
"""Seconds between two signs of life."""
LONGEST = 600
"""Seconds of the longest lease, and of the longest delay of a nack."""


class _Place:
    """One subscription, and how it is pulled from: where pulls bring less than they ask for although there is more,
    several are under way together."""

    def __init__(self, topic: str, path: str) -> None:
        self.topic = topic
        self.path = path
        self.together = 1
        self.size = _IDS

    def learn(self, pull: _Pull, brought: int) -> None:
        if not brought or pull.ended_at - pull.began_at > _AT_ONCE:
            self.together, self.size = 1, _IDS
        elif brought < pull.asked:
            self.together, self.size = _TOGETHER, min(_IDS, max(_LEAST, 2 * brought))
        else:
            self.size = min(_IDS, max(self.size, 2 * brought))


class _Pull:
    """A pull that is under way."""

    def __init__(self, place: _Place, asked: int) -> None:
        self.place = place
        self.asked = asked
        self.began_at = time.monotonic()
        self.ended_at = self.began_at
        self.future: Any = None


class PubsubReceiver(Receiver):
    def __init__(
        self,
        link: Link,
        subscriptions: Sequence[tuple[str, str]],
        traits: Traits,
        guarantee: Guarantee,
        settled: Settled,
        events: ReceiverEvents,
        prefetch_bytes: int,
        ordering: bool = False,
    ) -> None:
        """`subscriptions`: topics as the user names them, each with its subscription's whole name. With `ordering`,
        pulls of one subscription never overtake each other, for there is one at a time; and what comes again with
        a nacked message, being of its key and behind it, is left out where this session has acked it."""
        assert traits.lease_seconds is not None
        self.traits = traits
        self._link = link
        self._places = [_Place(topic, path) for topic, path in subscriptions]
        self._together = 1 if ordering else _TOGETHER
        self._rewound = _Rewound() if ordering else None
        self._pulls: list[_Pull] = []
        self._buffer: list[PubsubIncoming] = []
        self._lease = traits.lease_seconds
        self._once = guarantee is Guarantee.AT_MOST_ONCE
        self._settled = settled
        self._events = events
        self._prefetch_bytes = prefetch_bytes
        self._typical = 1024.0
        # A pull that outlives this process must end before the leases do, or it takes what comes free with it.
        self._patience = min(_PULL, 0.6 * self._lease)
        self._timeout = max(0.75, min(10.0, self._lease / 4))  # two renewals may fail and a third be in time
        self._pulling = True
        self._arrived = threading.Event()
        self._awake_at = time.monotonic()
        self._still = (0.0, 0.0)
        """From when to when this process stood still the last time, at the longest."""
        self._unanswered: list[PubsubIncoming] = []
        self._lock = threading.Lock()
        self._failing_since: float | None = None
        self._over = ""
        self._told = False
        self._closed = False

    # ------------------------------------------------------------ receiving

    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        self._check()
        self._awake()
        if max_messages <= 0:
            self._keep_buffer()
            if timeout > 0:
                self._wait(timeout)
            return []
        self._arrived.clear()
        self._begin(max_messages)
        if not self._buffer and not any(pull.future.done() for pull in self._pulls):
            self._wait(timeout)
            self._check()
        self._collect()
        now = time.monotonic()
        received = [delivery for delivery in self._buffer[:max_messages] if delivery.deadline > now]
        del self._buffer[:max_messages]
        if not received and self._failing_since is not None:
            self._wait(min(timeout, 0.1))  # calls fail at once where nobody listens
        return received

    def _wait(self, timeout: float) -> None:
        """For an answer."""
        until = self._awake() + timeout
        while not self._arrived.wait(min(_SIGN, max(0.0, until - self._awake_at))) and self._awake() < until:
            pass

    def _awake(self) -> float:
        """A sign of life; what time it is."""
        now = time.monotonic()
        if now - self._awake_at > _STILL:
            self._still = self._awake_at, now
        self._awake_at = now
        return now

    def _begin(self, max_messages: int) -> None:
        """Starts the pulls that may be, within the bounds on messages and, by their typical size, on bytes."""
        room = min(max_messages, max(1, int(self._prefetch_bytes / self._typical)))
        room -= len(self._buffer) + sum(pull.asked for pull in self._pulls)
        self._places.append(self._places.pop(0))  # whoever came last for what was left comes first
        for left, place in zip(range(len(self._places), 0, -1), self._places, strict=True):
            share = max(0, room) // left
            most = min(place.together, self._together) - sum(pull.place is place for pull in self._pulls)
            for _ in range(most):
                asked = min(share, place.size)
                if asked:
                    share -= asked
                    room -= asked
                    self._start(_Pull(place, asked))

    def _start(self, pull: _Pull) -> None:
        def ended(_: Any) -> None:
            now = self._awake()
            since, until = self._still
            pull.ended_at = max(since, pull.began_at) if until > pull.began_at else now
            self._arrived.set()

        request = PullRequest(subscription=pull.place.path, max_messages=pull.asked)
        try:
            with self._lock:
                if self._pulling:
                    pull.future = self._link.begin("Pull", request, self._patience, ended)
                    self._pulls.append(pull)
        except ValueError:  # the channel was closed by another thread
            self._check()
            raise

    def _pull_no_more(self) -> None:
        """Before anything is given back for good: a pull of ours that waits would be the first to be handed it."""
        with self._lock:
            waiting = [pull for pull in self._pulls if not pull.future.done()] if self._pulling else []
            self._pulling = False
        for pull in waiting:
            pull.future.cancel()
        for place in {pull.place for pull in waiting}:
            self._alive(place)  # an answer on the same connection: the service has read the cancellations too

    def _collect(self) -> None:
        """What pulls have brought goes into the buffer."""
        done = [pull for pull in self._pulls if pull.future.done()]
        self._pulls = [pull for pull in self._pulls if pull not in done]
        for pull in done:
            try:
                found = answer_of(pull.future).received_messages
            except grpc.FutureCancelledError:
                continue
            except grpc.RpcError as error:
                pull.place.learn(pull, 0)
                self._pull_failed(pull.place, error)
                continue
            self._answered()
            place = pull.place
            # An answer that lay about while this process stood still left before its pull was over at the service.
            left = min(pull.ended_at, pull.began_at + self._patience) - min(_MARGIN, self._lease / 8)
            deadline = max(pull.began_at, left) + self._lease
            place.learn(pull, len(found))
            received = [PubsubIncoming(native, place.topic, place.path, deadline) for native in found]
            if self._rewound is not None:
                received = self._without_acked(self._rewound, place, received)
            if received:
                mean = sum(delivery.size for delivery in received) / len(received)
                self._typical = max(1.0, mean, 0.8 * self._typical + 0.2 * mean)
            self._buffer += received

    def _without_acked(self, rewound: _Rewound, place: _Place, received: list[PubsubIncoming]) -> list[PubsubIncoming]:
        again = [delivery for delivery in received if rewound.has(delivery)]
        self._ack(place.path, again, _Ends())
        return [delivery for delivery in received if delivery not in again] if again else received

    def _keep_buffer(self) -> None:
        """What the layer cannot take yet is renewed here, at a third of the lease as everything else."""
        self._collect()
        now = time.monotonic()
        due = [delivery for delivery in self._buffer if delivery.deadline - now < self._lease * 2 / 3]
        if due:
            lost = set(self._renew(due, self._lease))
            self._buffer = [delivery for delivery in self._buffer if delivery not in lost]

    def _pull_failed(self, place: _Place, error: grpc.RpcError) -> None:
        if error.code() is StatusCode.DEADLINE_EXCEEDED and self._alive(place):
            return  # nothing was sent meanwhile
        self._failed(error, f"pulling from {place.path}")

    def _alive(self, place: _Place) -> bool:
        """Whether the service answers at all: a pull that brings nothing looks the same on a dead connection."""
        try:
            self._link.call("GetSubscription", GetSubscriptionRequest(subscription=place.path), self._timeout)
        except grpc.RpcError as error:
            return error.code() not in TRANSIENT and error.code() is not StatusCode.NOT_FOUND
        return True

    # ------------------------------------------------------------ settling

    def settle(
        self,
        acks: Sequence[Token] = (),
        nacks: Sequence[Nack] = (),
        rejects: Sequence[Reject] = (),
    ) -> None:
        self._check()
        if rejects:
            raise NotSupported("Pub/Sub moves nothing to the dead letters when asked to: the layer does")
        if any(nack.unstarted for nack in nacks):
            self._pull_no_more()
        ends = _Ends()
        with self._lock:
            again, self._unanswered = self._unanswered, []
        for path, tokens in _by_place([*again, *self._held(acks, ends)]):
            self._ack(path, self._held(tokens, ends), ends)
        for delay in {nack.delay for nack in nacks}:
            tokens = self._held([nack.token for nack in nacks if nack.delay == delay], ends)
            if self._rewound is not None:
                self._rewound.nacked(tokens, delay)
            for path, some in _by_place(tokens):
                self._modify(path, some, min(LONGEST, math.ceil(delay)), ends)
        self._tell(ends)

    def extend(self, tokens: Sequence[Token], seconds: float) -> None:
        self._check()
        lost = self._renew(tokens, seconds)
        if lost:
            self._events.lease_lost(lost, "no renewal reached Pub/Sub before the lease was over")
        self._end_if_over()

    def _renew(self, tokens: Sequence[Token], seconds: float) -> list[PubsubIncoming]:
        """Returns those whose lease is over."""
        ends = _Ends()
        asked = min(LONGEST, max(1, math.ceil(seconds)))
        for path, some in _by_place(self._held(tokens, ends)):
            began = time.monotonic()
            failed = len(ends.lost)
            if self._modify(path, some, asked, ends, renewal=True):
                lost = set(ends.lost[failed:])
                for token in some:
                    if token not in lost:
                        token.deadline = began + asked
        return [*ends.lost, *ends.unknown]

    def flush(self, timeout: float) -> None:
        if self._unanswered:
            self.settle()

    def close(self, timeout: float) -> None:
        self._closed = True
        self._arrived.set()
        if not self._over:
            self._pull_no_more()
            self._give_back()
            self._end("the receiver was closed before Pub/Sub answered")
        self._link.close()

    def _give_back(self) -> None:
        """What pulls brought and nobody was handed."""
        with contextlib.suppress(BrokerkitError):  # it is over, then, and so are its leases soon
            self._collect()
        for path, tokens in _by_place(self._buffer):
            self._modify(path, tokens, 0, _Ends())
        self._buffer = []

    def _held(self, tokens: Iterable[PubsubIncoming], ends: _Ends) -> list[PubsubIncoming]:
        """Those whose lease lasts; the others are over, and are somebody else's or will be."""
        now = time.monotonic()
        held = []
        for token in tokens:
            if token.deadline > now:
                held.append(token)
            else:
                (ends.unknown if token.asked else ends.lost).append(token)
        return held

    def _ack(self, path: str, tokens: list[PubsubIncoming], ends: _Ends) -> None:
        for some in _cut(tokens):
            request = AcknowledgeRequest(subscription=path, ack_ids=[token.native.ack_id for token in some])
            if self._ask("Acknowledge", request, some, ends) and self._rewound is not None:
                self._rewound.acked(ends.settled)

    def _modify(
        self, path: str, tokens: list[PubsubIncoming], seconds: int, ends: _Ends, *, renewal: bool = False
    ) -> bool:
        """Whether it was answered."""
        answered = True
        for some in _cut(tokens):
            request = ModifyAckDeadlineRequest(
                subscription=path, ack_ids=[token.native.ack_id for token in some], ack_deadline_seconds=seconds
            )
            answered &= self._ask("ModifyAckDeadline", request, some, ends, renewal=renewal, again=False)
        return answered

    def _ask(
        self,
        method: str,
        request: Any,
        tokens: list[PubsubIncoming],
        ends: _Ends,
        *,
        renewal: bool = False,
        again: bool = True,
    ) -> bool:
        """One call about these tokens, and what it says of each. `again`: asked once more when there is no answer."""
        try:
            self._link.call(method, request, self._timeout)
        except grpc.RpcError as error:
            return self._not_done(method, error, tokens, ends, renewal, again)
        except ValueError:  # the channel was closed by another thread
            ends.unknown += tokens
            return False
        self._answered()
        if not renewal:
            now = time.monotonic()
            for token in tokens:  # an ack that came too late is answered as a good one is
                (ends.unknown if again and token.deadline <= now else ends.settled).append(token)
        return True

    def _not_done(
        self,
        method: str,
        error: grpc.RpcError,
        tokens: list[PubsubIncoming],
        ends: _Ends,
        renewal: bool,
        again: bool,
    ) -> bool:
        failures = ack_failures(error)
        if failures:  # exactly-once delivery: those that are not named were done
            self._answered()
            for token in tokens:
                failure = failures.get(token.native.ack_id, "")
                if not failure:
                    ends.settled += [] if renewal else [token]
                elif failure.startswith("TRANSIENT"):
                    self._later([token], ends, renewal, again)
                else:
                    # An ack that was sent before may be what made this id stale.
                    (ends.unknown if token.asked else ends.lost).append(token)
            return True
        if error.code() in TRANSIENT:
            self._trouble(f"{method}: {error.details() or error.code().name}")
            self._later(tokens, ends, renewal, again)
            return False
        ends.lost += tokens
        if error.code() is StatusCode.NOT_FOUND:
            self._end(f"{method}: {error.details()}")
        else:
            self._trouble(f"{method}: {translated(error, 'it was refused')}")
        return False

    def _later(self, tokens: list[PubsubIncoming], ends: _Ends, renewal: bool, again: bool) -> None:
        """A renewal comes again by itself; an ack is sent again, but where it would come too late to count."""
        if renewal:
            return
        if not again or self._once:
            ends.unknown += tokens
            return
        ends.sent += [token for token in tokens if not token.asked]
        for token in tokens:
            token.asked = True
        with self._lock:
            self._unanswered += tokens

    def _tell(self, ends: _Ends) -> None:
        told = [
            Settlement(ends.settled, End.SETTLED),
            Settlement(ends.sent, End.SENT, "no answer yet; it is asked again"),
            Settlement(ends.lost, End.LOST, "its lease was over"),
            Settlement(ends.unknown, End.UNKNOWN, "no answer"),
        ]
        told = [settlement for settlement in told if settlement.tokens]
        if told:
            self._settled(told)
        self._end_if_over()

    # ------------------------------------------------------------ the session

    def _answered(self) -> None:
        if self._failing_since is not None:
            self._failing_since = None
            self._events.recovered()

    def _failed(self, error: grpc.RpcError, doing: str) -> None:
        """After a pull that failed: goes on, ends the session, or raises what ends the consumer."""
        if error.code() is StatusCode.NOT_FOUND:
            self._end(f"{doing}: {error.details()}")
            self._end_if_over()
        elif error.code() in TRANSIENT:
            self._trouble(f"{doing}: {error.details() or error.code().name}")
            self._end_if_over()
        else:
            raise translated(error, doing)

    def _trouble(self, reason: str) -> None:
        now, since = time.monotonic(), self._failing_since
        if since is None:
            self._failing_since = now
            self._events.trouble(reason)
        elif now - since > self._lease:
            self._end(f"no answer for {now - since:.0f} s: {reason}")

    def _end(self, reason: str) -> None:
        with self._lock:
            if self._over:
                return
            self._over = reason
            tokens, self._unanswered = self._unanswered, []
        if tokens:
            self._settled([Settlement(tokens, End.UNKNOWN, reason)])

    def _end_if_over(self) -> None:
        with self._lock:
            tell = bool(self._over) and not self._told and not self._closed
            self._told = self._told or tell
        if tell:
            self._arrived.set()
            self._events.disconnected(self._over)

    def _check(self) -> None:
        if self._closed:
            raise ConnectionLost("the receiver was closed")
        if self._over:
            raise ConnectionLost(self._over)


class _Rewound:
    """Redelivering a message with an ordering key, Pub/Sub sends all later ones of the key again, acked or not: what
    this session acked is known again here, for a while after it gave an earlier one back."""

    def __init__(self) -> None:
        self._acked: OrderedDict[str, None] = OrderedDict()
        self._until: OrderedDict[str, float] = OrderedDict()

    def acked(self, tokens: Sequence[PubsubIncoming]) -> None:
        self._acked.update((token.native.message.message_id, None) for token in tokens if token.key is not None)
        while len(self._acked) > _REMEMBERED:
            self._acked.popitem(last=False)

    def nacked(self, tokens: Sequence[PubsubIncoming], delay: float) -> None:
        until = time.monotonic() + delay + _REWINDS_FOR
        self._until.update((token.key, until) for token in tokens if token.key is not None)
        while len(self._until) > _REMEMBERED:
            self._until.popitem(last=False)

    def has(self, token: PubsubIncoming) -> bool:
        """A message that comes again for another reason, a seek perhaps, is nobody's to leave out."""
        until = self._until.get(token.key or "", 0.0)
        return until > time.monotonic() and token.native.message.message_id in self._acked


class _Ends:
    """How settlements ended, as they become known."""

    __slots__ = ("lost", "sent", "settled", "unknown")

    def __init__(self) -> None:
        self.settled: list[PubsubIncoming] = []
        self.sent: list[PubsubIncoming] = []
        self.lost: list[PubsubIncoming] = []
        self.unknown: list[PubsubIncoming] = []


def _by_place(tokens: Sequence[PubsubIncoming]) -> Iterator[tuple[str, list[PubsubIncoming]]]:
    """Deliveries of each subscription; nearly always there is one."""
    places: dict[str, list[PubsubIncoming]] = {}
    for token in tokens:
        places.setdefault(token.place, []).append(token)
    yield from places.items()


def _cut(items: Sequence[Any]) -> Iterator[Any]:
    for start in range(0, len(items), _IDS):
        yield items[start : start + _IDS]
