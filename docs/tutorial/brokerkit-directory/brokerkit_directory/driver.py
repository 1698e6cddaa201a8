"""The driver: batches of messages between brokerkit and the folders of spool.py.

Retries, receipts, bounds, lease keeping, attempts and dead letters are brokerkit's. What is left is small.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from brokerkit.driver import (
    Capabilities,
    Cause,
    Confirmed,
    Driver,
    End,
    Incoming,
    Nack,
    Outcome,
    Outcomes,
    Position,
    Receiver,
    ReceiverEvents,
    Refused,
    Reject,
    Sender,
    SenderEvents,
    Settled,
    Settlement,
    Subscription,
    Token,
    Traits,
)
from brokerkit.errors import Closed, ConfigurationError, ConnectionLost, NotFound, NotSupported
from brokerkit.guarantees import Claim, Claims, FailurePoint, Guarantee, Likelihood, Properties
from brokerkit.message import Headers, Message
from brokerkit_directory.spool import Entry, Spool, decode, difference, encode, now, sync, write

MAX_BODY = 64 * 1024 * 1024


class DirectoryDriver(Driver):
    """See the module."""

    blocking = True
    capabilities = Capabilities(
        producer_guarantees=frozenset({Guarantee.AT_MOST_ONCE, Guarantee.AT_LEAST_ONCE}),
        consumer_guarantees=frozenset({Guarantee.AT_MOST_ONCE, Guarantee.AT_LEAST_ONCE}),
        delayed_send=True,
        max_body_bytes=MAX_BODY,
    )

    def __init__(self, root: Path, lease_seconds: float) -> None:
        self._root = root
        self._lease = lease_seconds

    def claims(self, producer: Guarantee, consumer: Guarantee) -> Claims:
        never, possible, expected = Likelihood.NEVER, Likelihood.POSSIBLE, Likelihood.EXPECTED
        source = "brokerkit_directory/spool.py: every change of state is one rename"
        first = consumer is Guarantee.AT_MOST_ONCE  # acked before it is handed over
        unsent = possible if producer is Guarantee.AT_MOST_ONCE else never
        killed = Claim(possible if first else never, never if first else possible, source=source)
        points: dict[str, Claim] = {
            FailurePoint.NONE: Claim(source=source),
            FailurePoint.CLEAN_SHUTDOWN: Claim(source=source),
            FailurePoint.PRODUCER_KILLED: Claim(unsent, possible, source=source),
            FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING: Claim(expected, never, source=source) if first else killed,
            FailurePoint.CONSUMER_KILLED_BEFORE_ACK: killed if first else Claim(never, expected, source=source),
            FailurePoint.CONSUMER_FROZEN: killed if first else Claim(never, expected, source=source),
            FailurePoint.CONSUMERS_COME_AND_GO: killed,
            FailurePoint.POISON: Claim(possible if first else never, killed.duplicate, source=source),
        }
        return Claims(
            points,
            Properties(
                lease="renewable",
                lease_seconds=self._lease,
                redelivery_seconds=self._lease * 1.5 + 1.0,
                nack="delayed",
                max_body_bytes=MAX_BODY,
                notes=("Tested against killed processes, not against power loss.",),
            ),
        )

    def declare(self, topic: str, subscriptions: Sequence[Subscription], native: Mapping[str, Any]) -> None:
        if native:
            raise ConfigurationError(f"dir:// has no native settings, so no {next(iter(native))!r}")
        (self._root / topic / ".writing").mkdir(parents=True, exist_ok=True)
        for subscription in subscriptions:
            if subscription.start == "earliest":
                raise NotSupported("dir:// keeps no settled messages: declare the subscription before the first send")
            if subscription.dead_letter is not None:
                self.declare(subscription.dead_letter, [Subscription("dead")], {})
            spool = Spool(self._root / topic / subscription.name)
            spool.create(subscription)
            other = difference(spool.settings(), subscription)
            if other:
                raise ConfigurationError(
                    f"subscription {subscription.name!r} of {topic!r} is there with other settings: {other}. "
                    "Delete it first, or declare it as it is"
                )

    def delete(self, topic: str, subscription: str | None) -> None:
        path = self._root / topic
        shutil.rmtree(path if subscription is None else path / subscription, ignore_errors=True)

    def depth(self, topic: str, subscription: str) -> int:
        return self._spool(topic, subscription).depth()

    def describe(self) -> Mapping[str, str]:
        return {"product": "brokerkit directory", "version": "0.1.0", "lease_seconds": str(self._lease)}

    def sender(
        self,
        topic: str,
        guarantee: Guarantee,
        outcomes: Outcomes,
        events: SenderEvents,
        *,
        subscription: str | None = None,
        native: Mapping[str, Any] | None = None,
        delivery_timeout: float = 30.0,
        timeout: float = 10.0,
    ) -> Sender:
        path = self._root / topic
        if not path.is_dir():
            raise NotFound(f"topic {topic!r} does not exist: declare it first")
        return _Sender(path, subscription, outcomes if guarantee is not Guarantee.AT_MOST_ONCE else _refusals(outcomes))

    def receiver(
        self,
        topics: Sequence[str],
        subscription: Subscription,
        guarantee: Guarantee,
        settled: Settled,
        events: ReceiverEvents,
        *,
        prefetch: int = 500,
        prefetch_bytes: int = 64 * 1024 * 1024,
        timeout: float = 10.0,
    ) -> Receiver:
        spools = {topic: self._spool(topic, subscription.name) for topic in topics}
        return _Receiver(spools, settled, events, self._lease, once=guarantee is Guarantee.AT_MOST_ONCE)

    def close(self, timeout: float) -> None:
        """Nothing to end: there is no connection."""

    def _spool(self, topic: str, subscription: str) -> Spool:
        spool = Spool(self._root / topic / subscription)
        if not (spool.path / "settings").exists():
            raise NotFound(f"topic {topic!r} has no subscription {subscription!r}: declare it first")
        return spool


def _refusals(outcomes: Outcomes) -> Outcomes:
    """At most once, nothing but refusals is told."""
    return lambda found: outcomes([outcome for outcome in found if isinstance(outcome, Refused)])


class _Sender(Sender):
    """Writes the message once and links it into every subscription; confirmed when all of it is on the disk."""

    def __init__(self, path: Path, only: str | None, outcomes: Outcomes) -> None:
        self._path = path
        self._only = only
        self._outcomes = outcomes
        self._next = 0
        self._writer = f"{os.getpid():x}{os.urandom(6).hex()}"
        self._count = itertools.count()
        self._open = True

    def send(self, messages: Sequence[Message], delay: float = 0.0) -> int:
        if not self._open:
            raise ConnectionLost("the sender is closed")
        spools = self._spools()
        outcomes = [self._one(number, message, delay, spools) for number, message in enumerate(messages, self._next)]
        for spool in spools:
            sync(spool.ready)
        self._next += len(messages)
        self._outcomes(outcomes)
        return len(messages)

    def _one(self, number: int, message: Message, delay: float, spools: Sequence[Spool]) -> Outcome:
        if len(message.body or b"") > MAX_BODY:
            return Refused(number, number, Cause.TOO_LARGE, f"the body is over {MAX_BODY} bytes")
        if not spools:
            return Refused(number, number, Cause.UNROUTABLE, f"topic {self._path.name!r} has no subscription")
        place = f"{time.time_ns():020d}-{self._writer}-{next(self._count)}"
        draft = self._path / ".writing" / place
        entry = Entry(now() + int(delay * 1000), place, _counted(message))
        try:
            write(draft, encode(message))
            for spool in spools:
                spool.put(draft, entry)
            draft.unlink()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return Refused(number, number, Cause.QUEUE_FULL, "the disk is full", retry=True)
            return Refused(number, number, Cause.TOPIC_MISSING, f"topic {self._path.name!r} is gone: {error.strerror}")
        return Confirmed(number, number, [Position(self._path.name, 0, place)])

    def _spools(self) -> list[Spool]:
        names = [self._only] if self._only is not None else [path.name for path in self._path.glob("[!.]*")]
        return [Spool(self._path / name) for name in names if (self._path / name / "settings").exists()]

    def close(self, timeout: float) -> None:
        self._open = False


def _counted(message: Message) -> int:
    """Handings-over before this copy, where brokerkit counts them in a header."""
    attempt = message.headers.get("brokerkit-attempt", "1")
    return int(attempt) - 1 if isinstance(attempt, str) and attempt.isdigit() else 0


class _Received(Incoming):
    __slots__ = (
        "all_headers",
        "attempt",
        "body",
        "content_type",
        "id",
        "key",
        "position",
        "published_at",
        "token",
        "topic",
    )

    id_source = "producer"
    lane = None
    native = None

    def __init__(self, topic: str, entry: Entry, message: Message) -> None:
        self.token = (topic, entry.place, entry.attempts)
        self.topic = topic
        self.attempt = entry.attempts
        self.position = Position(topic, 0, entry.place)
        self.body = message.body
        self.id = message.id
        self.key = message.key
        self.all_headers: Headers = message.headers
        self.content_type = message.content_type
        self.published_at = message.published_at

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.body or b"")


class _Receiver(Receiver):
    """Leases entries, and remembers under which name each is ours."""

    def __init__(
        self, spools: Mapping[str, Spool], settled: Settled, events: ReceiverEvents, lease: float, *, once: bool
    ) -> None:
        declared = next(iter(spools.values())).settings()
        self.traits = Traits(
            lease_seconds=lease,
            renewable=True,
            attempts=declared["attempts"],
            dead_letter=declared["dead_letter"],
        )
        self._spools = spools
        self._settled = settled
        self._events = events
        self._lease = lease
        self._once = once
        self._ours: dict[Token, Entry] = {}
        self._reap_at = 0.0
        self._ended = threading.Event()

    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        deadline = time.monotonic() + timeout
        while True:
            if self._ended.is_set():
                raise Closed("the receiver is closed")
            self._reap()
            taken = list(itertools.islice(self._take(), max_messages))
            left = deadline - time.monotonic()
            if taken or left <= 0:
                return taken
            self._ended.wait(min(left, 0.02))

    def _take(self) -> Iterator[Incoming]:
        for topic, spool in self._spools.items():
            for entry in spool.waiting():
                ours = spool.lease(entry, self._lease)
                if ours is None:
                    continue
                if self._once and ours.attempts > 1:
                    spool.done(ours)  # somebody may have seen it already
                    continue
                try:
                    content = (spool.leased / ours.name).read_bytes()
                except FileNotFoundError:
                    continue  # frozen for a whole lease between two lines: it is somebody else's now
                received = _Received(topic, ours, decode(content))
                self._ours[received.token] = ours
                yield received

    def _reap(self) -> None:
        if time.monotonic() >= self._reap_at:
            self._reap_at = time.monotonic() + self._lease / 4
            for spool in self._spools.values():
                spool.reap()

    def settle(self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()) -> None:
        ends: dict[bool, list[Token]] = {True: [], False: []}
        for token in acks:
            entry = self._ours.pop(token, None)
            ends[entry is not None and self._spools[token[0]].done(entry)].append(token)
        for token, delay, unstarted in nacks:
            entry = self._ours.pop(token, None)
            ends[entry is not None and self._spools[token[0]].give_back(entry, delay, unstarted)].append(token)
        for spool in self._spools.values():
            sync(spool.leased)
        self._settled([Settlement(ends[True], End.SETTLED), Settlement(ends[False], End.LOST, "the lease was over")])

    def extend(self, tokens: Sequence[Token], seconds: float) -> None:
        over = []
        for token in tokens:
            entry = self._ours.pop(token, None)
            renewed = entry and self._spools[token[0]].renew(entry, seconds)
            if renewed:
                self._ours[token] = renewed
            else:
                over.append(token)
        if over:
            self._events.lease_lost(over, "another consumer took it over")

    def close(self, timeout: float) -> None:
        self._ended.set()
        for token, entry in list(self._ours.items()):
            self._spools[token[0]].give_back(entry, unstarted=True)
        self._ours.clear()
