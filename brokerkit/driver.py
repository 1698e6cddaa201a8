"""The driver contract: what a plugin implements for its broker.

A driver is small and dumb. It moves batches between the portable layer and one client library; bounds,
receipts, retries, guarantees, leases, attempts, reconnects and drain are the layer's (producer.py,
consumer.py). It has no retry loop, no user state, and no thread that this page does not name.

**Sessions.** A `Sender`, `Receiver` or `Transactor` stands for one session with the broker. When the session
ends on its own, the driver reports the outcome of everything outstanding, then calls
`events.disconnected(reason)` once, from any thread. From then on every call but `close()` raises
ConnectionLost. The layer closes it and asks the driver for a new one, with backoff; tokens of the old session
are never handed to the new one. A client library that reconnects by itself without losing anything
(librdkafka) does not end its session; it reports `events.trouble(reason)` and `events.recovered()`.

**Threads.** The layer calls one object's methods from one thread at a time, except `close()`, which may
come while another call blocks and must make it return or raise Closed. Callbacks may come from any thread,
also from inside a call; the layer never calls back into the driver from `outcomes` or `settled`.

**Blocking.** With `blocking = True` (sqlite, unary pull) every call may block for a round trip, and the layer runs
sends on a thread of its own. With `blocking = False` (pika's I/O thread, librdkafka's queues, a few threads around
boto3) `send` and `settle` only enqueue and return at once; the driver owns the client's I/O threads.

**Errors.** Raise the classes of errors.py only; translate the client's. Calls that talk to the broker raise
ConnectionLost when it cannot be reached within `timeout`, AccessRefused for credentials, NotFound for what
is missing. No secret and no body in any message.

**Forks.** The layer checks for use after a fork; a driver need not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Protocol

from brokerkit.errors import NotSupported
from brokerkit.guarantees import Claims, Guarantee
from brokerkit.message import Fields, Headers, Message, Received
from brokerkit.message import Position as Position

Token = Any
"""A driver's own handle of one delivery, hashable, meaningful within one session only."""

Start = Literal["now", "earliest"]


# ---------------------------------------------------------------- sending


class Cause(StrEnum):
    """Why a send was refused, or is unknown, by name."""

    UNREACHABLE = "unreachable"
    UNROUTABLE = "unroutable"
    TOO_LARGE = "too_large"
    TOPIC_MISSING = "topic_missing"
    QUEUE_FULL = "queue_full"
    ACCESS = "access"
    INVALID = "invalid"
    DUPLICATE = "duplicate"
    TIMED_OUT = "timed_out"
    DISCONNECTED = "disconnected"
    NACKED = "nacked"
    FENCED = "fenced"
    CLOSED = "closed"


class Confirmed(NamedTuple):
    """The broker said that it stored messages `first` to `last` (inclusive sequence numbers).

    `positions` has one for each, or is None where the broker tells none; for a message that the broker recognised
    as stored before, the position of the first. A bare tuple of a position's fields will do: few are looked at.
    """

    first: int
    last: int
    positions: Sequence[tuple[str, int | str, int | str] | Position] | None = None


class Refused(NamedTuple):
    """Messages `first` to `last` are certainly not stored by this attempt.

    `retry`: another attempt may succeed (unreachable, a queue that is full for now).
    """

    first: int
    last: int
    cause: Cause
    detail: str
    retry: bool = False


class Unknown(NamedTuple):
    """Messages `first` to `last` may be stored. The layer tries again where the guarantee allows it.

    `retry=False`: the client already tried as long as it could, or a new attempt would void its promise
    (Kafka's idempotent producer).
    """

    first: int
    last: int
    cause: Cause
    detail: str
    retry: bool = True


Outcome = Confirmed | Refused | Unknown
Outcomes = Callable[[Sequence[Outcome]], None]


class SenderEvents(Protocol):
    """What a sender tells the layer; every call returns quickly and never raises."""

    def told(self, receipts: int) -> None:
        """So many receipts of `Poster.post` were told how they ended since the last call."""

    def disconnected(self, reason: str) -> None: ...
    def trouble(self, reason: str) -> None: ...
    def recovered(self) -> None: ...
    def blocked(self, reason: str) -> None: ...
    def unblocked(self) -> None: ...


class Posted(Protocol):
    """A message given to `Poster.post`, to be told once how it ended; from any thread. Nothing else happens in here."""

    def stored(self, topic: str, lane: int | str, place: int | str | None) -> None:
        """The broker has it, at these fields of a Position; `place` is None where it tells none."""

    def failed(self, outcome: Refused | Unknown) -> None:
        """Whose numbers are not looked at."""


Post = Callable[[Posted, bytes | None, str, str | None, Headers, str | None, int], bool]
"""Takes one message, its fields in the order of Message; a `published_at` of 0 means now, by the clock of the client
that sends it. False: full for now, offer it again later. Raises ConnectionLost when the session is over (it was not
taken)."""


class Sender(ABC):
    """One session that sends to one topic.

    It numbers the messages it takes 0, 1, 2, … in order. For `at_least_once` and `exactly_once` each number
    gets exactly one outcome (a range may cover many), also when the session ends. For `at_most_once` it
    reports no Confirmed and no Unknown: Refused only, for what certainly was not written.
    """

    post: Post | None = None
    """A Poster's."""

    @abstractmethod
    def send(self, messages: Sequence[Message], delay: float = 0.0) -> int:
        """Takes a prefix of `messages` and returns its length; fewer means full for now, offer the rest later.

        Raises ConnectionLost when the session is over (nothing of this call was taken). A single message
        that cannot be sent is taken and reported Refused, never raised. `delay` in seconds is passed only
        where `Capabilities.delayed_send` is true. Asynchronous drivers return at once; blocking drivers
        return when every message has its outcome.
        """

    @abstractmethod
    def close(self, timeout: float) -> None:
        """Ends the session within `timeout` seconds; what is outstanding by then is reported Unknown or Refused."""


class Poster(Sender):
    """A sender over a client that calls back for each message: `post` takes them one by one; `send` is never called.

    It tells every message it takes its end (for `at_most_once` those alone that were not written), and then calls
    `events.told`, once for many. `post` is called by one thread at a time, and may call that itself.
    """

    post: Post

    def send(self, messages: Sequence[Message], delay: float = 0.0) -> int:
        raise NotSupported("this sender takes messages by post, one by one")


# ---------------------------------------------------------------- receiving


class Incoming(Received):
    """One message as received, decoded lazily. Drivers subclass it with `__slots__`; a compiled class, which cannot,
    has its attributes, and Received's.

    Its attributes, Received's included, may be slots or properties. They are read from any thread, possibly never, and
    must not raise on bytes that a foreign producer wrote: broken UTF-8 and foreign types go through the published table
    in docs/reference/wire-format.md.
    """

    __slots__ = ()

    token: Token
    lane: Hashable
    """What a `revoked` event names: the partition, or None where nothing is ever revoked."""
    size: int
    """Body bytes, for the bound on bytes in flight; cheap."""


class End(StrEnum):
    """How a settlement ended."""

    SETTLED = "settled"
    """The broker answered: it is done."""
    SENT = "sent"
    """Written; this broker gives no answer. May be followed by settled, lost or unknown for the same token."""
    LOST = "lost"
    """The broker said the lease or assignment was over: the message is, or will be, handed out again."""
    UNKNOWN = "unknown"
    """The session ended before an answer."""


class Settlement(NamedTuple):
    tokens: Sequence[Token]
    end: End
    detail: str = ""


Settled = Callable[[Sequence[Settlement]], None]


class Nack(NamedTuple):
    """Hand the message out again, `delay` seconds from now at the earliest.

    `unstarted`: nobody looked at it (close, revoke): it must not burn an attempt where the broker can avoid it.
    """

    token: Token
    delay: float = 0.0
    unstarted: bool = False


class Reject(NamedTuple):
    """To the dead letters with this reason; only where `Traits.dead_letters` is `native`."""

    token: Token
    reason: str


class ReceiverEvents(Protocol):
    """What a receiver tells the layer. Only `assigned` and `revoked` may block, within `timeout` seconds."""

    def assigned(self, positions: Sequence[Position]) -> Mapping[Hashable, Position]:
        """The lanes that are ours from now on, each with where it goes on. The answer may move some of them:
        lane to position; the driver starts there instead."""

    def revoked(self, lanes: Sequence[Hashable], timeout: float) -> None:
        """These lanes go to somebody else in an orderly way: blocks until the layer has settled what it can
        (it calls `settle` from this thread). Afterwards the driver commits and gives the lanes up."""

    def lost(self, lanes: Sequence[Hashable], reason: str) -> None:
        """These lanes are already somebody else's; nothing of them can be settled any more."""

    def take_back(self, lanes: Sequence[Hashable]) -> Sequence[Token]:
        """What the layer has buffered of these lanes and handed to nobody leaves its buffer; returns the tokens,
        in order. They are not outstanding any more: the driver hands the messages out again, after those that
        must come first."""

    def lease_lost(self, tokens: Sequence[Token], reason: str) -> None: ...
    def disconnected(self, reason: str) -> None: ...
    def trouble(self, reason: str) -> None: ...
    def recovered(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Traits:
    """What a receiver found out about its subscription when it opened."""

    nack: Literal["native", "republish"] = "native"
    """How an undelayed nack works: `republish` means the layer sends a copy to the subscription alone
    (`Driver.sender(…, subscription=…)`), counts the attempt in a header, and then acks."""
    nack_delay: Literal["native", "republish", "none"] = "native"
    """The same for a delayed one; `republish` needs `Capabilities.delayed_send`, or a driver that keeps
    messages back until their `brokerkit-due` header."""
    longest_delay: float | None = None
    """Seconds of the longest delay that a native nack can keep; None: any."""
    nack_blocks: bool = False
    """A native nack holds its lane: what the layer has buffered of it and handed to nobody goes back with it, as
    unstarted, and comes again after it."""
    dead_letters: Literal["native", "layer"] = "layer"
    """`native`: `settle(rejects=…)` moves it with its reason, all or nothing. `layer`: the layer sends it to the
    dead-letter topic, waits for the confirm, and then acks."""
    attempts: int | None = None
    """Attempts after which the subscription dead-letters, if the broker knows."""
    dead_letter: str | None = None
    """Its dead-letter topic, if the broker knows."""
    lease_seconds: float | None = None
    """How long a delivery is ours without renewal; None: as long as the session lives."""
    ordered_lanes: bool = False
    """A lane is one receiver's at a time, which hands out its messages in order, without a gap."""
    renewable: bool = False
    """Whether `extend` renews. The layer renews at a third of `lease_seconds`."""
    answers_acks: bool = True


class Receiver(ABC):
    """One session that receives for one subscription.

    `prefetch` messages and `prefetch_bytes` bytes handed out and not settled are the most it may hold, its own
    buffer included; the layer passes them once at open.
    """

    traits: Traits

    @abstractmethod
    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        """Up to `max_messages`, as soon as there is at least one, or none after `timeout` seconds.

        Called continually, also while nothing may be handed out (`max_messages=0`: keep the session alive,
        run callbacks, return after `timeout`). Events may be raised from inside it. Raises ConnectionLost when
        the session is over.
        """

    @abstractmethod
    def settle(
        self,
        acks: Sequence[Token] = (),
        nacks: Sequence[Nack] = (),
        rejects: Sequence[Reject] = (),
    ) -> None:
        """Settles in batches, in any order. Every token gets one final Settlement through `settled`, possibly
        after one SENT. May be called from another thread than `receive`, also while that blocks; never from two
        threads at once. Raises ConnectionLost when the session is over (the layer reports the tokens lost)."""

    def extend(self, tokens: Sequence[Token], seconds: float) -> None:
        """Renews leases to `seconds` from now. Those that are over come back through `events.lease_lost`.
        Same threads as `settle`. Only called when `Traits.renewable`."""
        raise NotSupported("leases of this broker cannot be renewed")

    def flush(self, timeout: float) -> None:  # noqa: B027
        """Makes the broker answer for settlements that are only SENT, or are batched, within `timeout` seconds."""

    @abstractmethod
    def close(self, timeout: float) -> None:
        """Gives back what is buffered, flushes settlements, ends the session, within `timeout` seconds."""


# ---------------------------------------------------------------- transactions


class Transactor(ABC):
    """Sends and acks that become visible together or not at all. One owner thread.

    Errors: after any error but NotSupported the layer calls `abort`, which makes the transactor fit for the next
    `begin`, by whatever that takes; when it raises too, the layer closes the transactor and opens a new one with the
    same `instance`.
    """

    longest: float | None = None
    """Seconds after which the broker ends an open transaction by itself; None: never."""
    instance: str | None = None
    """The slot that it took where none was asked for; the session that follows it is opened with that."""

    @abstractmethod
    def begin(self) -> None: ...

    @abstractmethod
    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        """As Receiver.receive; what is received belongs to the open transaction, which may take in several times.
        Raises LeaseLost when what it has received is already, or will be, somebody else's."""

    @abstractmethod
    def send(self, topic: str, fields: Fields) -> None:
        """One message. A `published_at` of 0 means now, by the clock of the client that sends it."""

    @abstractmethod
    def settle(self, acks: Sequence[Token], rejects: Sequence[tuple[Incoming, str]] = ()) -> None:
        """What the commit settles. `rejects` go to the dead letters within the transaction, each for its reason; they
        come as they were received, so that nothing else received need be kept."""

    @abstractmethod
    def commit(self) -> None:
        """All of it, durably. Raises LeaseLost when nothing happened (it was fenced, or the broker ended it),
        SendRefused when a message of it can never be stored (nothing happened either), ConnectionLost when it
        cannot be told whether it happened; after `abort` it goes on from what the broker says."""

    @abstractmethod
    def abort(self) -> None:
        """None of it; what was received is handed out again, from the first message of the transaction."""

    @abstractmethod
    def close(self, timeout: float) -> None: ...


# ---------------------------------------------------------------- the driver


@dataclass(frozen=True, slots=True)
class Capabilities:
    producer_guarantees: frozenset[Guarantee]
    consumer_guarantees: frozenset[Guarantee]
    delayed_send: bool = False
    transactions: bool = False
    positions: bool = False
    """Whether `assigned` answers are honoured."""
    max_body_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Subscription:
    """How a subscription is declared; a consumer passes what this process declared or was told.

    `native`: the plugin's own settings. `attached`: native names that exist already and are taken as they are.
    `handling_seconds`: the longest time a handler may take, from which fixed leases are set.
    """

    name: str
    start: Start = "now"
    attempts: int | None = None
    dead_letter: str | None = None
    retry: Literal["topic", "block"] | None = None
    handling_seconds: float | None = None
    native: Mapping[str, Any] = field(default_factory=dict)


class Driver(ABC):
    """One broker as configured by a URL. Cheap to make; connects when first used. Safe from several threads."""

    blocking: bool = False
    capabilities: Capabilities

    @abstractmethod
    def claims(self, producer: Guarantee, consumer: Guarantee) -> Claims:
        """Computed from the actual configuration, and from what `describe` found of attached resources."""

    @abstractmethod
    def declare(self, topic: str, subscriptions: Sequence[Subscription], native: Mapping[str, Any]) -> None:
        """Creates what is missing, idempotently; never changes what is there with other arguments: raises
        ConfigurationError that names the difference. Declares dead-letter topics, with a subscription
        `dead` on each, so that nothing sent there is dropped. Returns when a consumer of each subscription
        would receive the next message sent."""

    @abstractmethod
    def delete(self, topic: str, subscription: str | None) -> None:
        """Removes the subscription, or the topic with all of them. Missing ones are no error."""

    @abstractmethod
    def depth(self, topic: str, subscription: str) -> int:
        """Messages stored for the subscription and not settled (ready, leased and delayed), as exact as the
        broker tells. Raises NotFound, and NotSupported where the broker tells nothing of the kind."""

    @abstractmethod
    def describe(self) -> Mapping[str, str]:
        """Product, version and settings that matter, for reports. No secrets."""

    @abstractmethod
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
        """Opens a session within `timeout` seconds. `native` names what exists already (an exchange and
        routing key), in the plugin's own words. With `subscription`, what is sent reaches that
        subscription alone (redelivery by republishing). A client that retries by itself may do so up to
        `delivery_timeout` seconds. Raises NotFound when the topic is missing and the broker tells."""

    @abstractmethod
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
        """Opens a session within `timeout` seconds. Under `at_most_once` the layer acks at hand-over and
        flushes before the user sees the message; a driver drops what its broker marks redelivered."""

    def transactor(
        self,
        topics: Sequence[str],
        subscription: Subscription,
        *,
        instance: str | None,
        timeout: float = 10.0,
    ) -> Transactor:
        raise NotSupported("this broker has no transactions: pass store= to brokerkit's transactions()")

    @abstractmethod
    def close(self, timeout: float) -> None: ...


# ---------------------------------------------------------------- the wire, for fault proxies


class Frame(NamedTuple):
    """One protocol unit on the wire. `kind` is one of publish, confirm, ack, ack_answer, extend, fetch, deliver,
    commit, commit_answer, heartbeat or other; `native` the protocol's own name of it, for evidence."""

    raw: bytes
    kind: str
    native: str
    ids: tuple[str, ...] = ()
    """Message ids it carries, where they can be seen."""


class Codec(Protocol):
    """A pure decoder of one connection: feed it bytes of either direction, get whole frames back.

    It keeps what it needs to know across frames (negotiated sizes, correlation ids). No I/O.
    """

    def client(self, data: bytes) -> Iterable[Frame]:
        """Frames from the client to the broker completed by `data`."""

    def broker(self, data: bytes) -> Iterable[Frame]:
        """Frames from the broker to the client completed by `data`."""
