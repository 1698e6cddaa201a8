"""What each received message passes on its way to the user and back: Delivery, and the state of its session.

Compiled where there is a compiler. The threads, reconnects and everything that is rare are in consumer.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event
from typing import TYPE_CHECKING, Any, Literal, cast

from mypy_extensions import mypyc_attr

from brokerkit import _fork
from brokerkit.driver import End, Nack, Position, Reject, Settlement, Token, Traits
from brokerkit.errors import AlreadySettled, Closed, LeaseLost
from brokerkit.message import Headers, IdSource, Message

if TYPE_CHECKING:
    from brokerkit.consumer import Consumer

State = Literal["pending", "settling", "settled", "sent", "lost", "unknown"]


class Lease:
    """How long a delivery is this consumer's. `seconds` is None where it lasts as long as the session."""

    __slots__ = ("_delivery",)

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    @property
    def seconds(self) -> float | None:
        """The length of one lease; renewed by brokerkit where the broker can."""
        return self._delivery._batch.ledger.traits.lease_seconds

    @property
    def renewable(self) -> bool:
        return self._delivery._batch.ledger.traits.renewable

    @property
    def lost(self) -> bool:
        """True once it is known that the message is, or will be, somebody else's."""
        return self._delivery.state == "lost" or self._delivery._batch.ledger.over


@mypyc_attr(acyclic=True)
class Delivery:
    """One handing-over of a message. Settle it once: `ack`, `nack` or `reject`, from any thread.

    `state`: `pending`, then `settling`, then `settled` (the broker answered), `sent` (this broker gives no
    answer), `lost` (the message is, or will be, handed out again) or `unknown`.
    """

    __slots__ = ("_batch", "_claimed", "_raw", "_token")

    def __init__(self, raw: Any, token: Any, batch: Batch) -> None:
        self._raw = raw
        self._token = token
        self._batch = batch
        self._claimed = False

    @property
    def _received(self) -> float:
        return self._batch.received

    @property
    def state(self) -> State:
        token = self._token
        batch = self._batch
        if not self._claimed:
            return "pending" if batch.ended is None else batch.ended.get(token, "pending")
        settling = batch.ledger.settling.get(token) is batch  # looked at first: it leaves there after its end is known
        ended = batch.ended
        if ended is not None and token in ended:
            return ended[token]
        return "settling" if settling else "settled"

    @property
    def body(self) -> bytes | None:
        return cast("bytes | None", self._raw.body)

    @property
    def id(self) -> str:
        """The message id; see `id_source` for what it recognises."""
        return cast(str, self._raw.id)

    @property
    def id_source(self) -> IdSource:
        return cast("IdSource", self._raw.id_source)

    @property
    def key(self) -> str | None:
        return cast("str | None", self._raw.key)

    @property
    def headers(self) -> Headers:
        """The producer's headers, without brokerkit's own."""
        return cast("Headers", self._raw.headers)

    @property
    def content_type(self) -> str | None:
        return cast("str | None", self._raw.content_type)

    @property
    def published_at(self) -> int:
        """Milliseconds since the epoch; 0 when unknown."""
        return cast(int, self._raw.published_at)

    @property
    def position(self) -> Position | None:
        """The broker's own coordinates, where it has any."""
        return cast("Position | None", self._raw.position)

    @property
    def attempt(self) -> int | None:
        """1 for the first handing-over; None when the broker does not tell."""
        return cast("int | None", self._raw.attempt)

    @property
    def topic(self) -> str:
        return cast(str, self._raw.topic)

    @property
    def dead_reason(self) -> str | None:
        """On a dead-letter topic: why the message is there."""
        reason = self._raw.all_headers.get("brokerkit-dead-reason")
        return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else cast("str | None", reason)

    @property
    def native(self) -> Any:
        """The client library's own object, with what the portable fields leave out."""
        return self._raw.native

    @property
    def lease(self) -> Lease:
        return Lease(self)

    @property
    def message(self) -> Message:
        """The message, apart from this handing-over of it."""
        return cast("Message", self._raw.message)

    def ack(self) -> None:
        """The work is done. Never blocks; `state`, `Consumer.flush` and `on_end` tell how it ended.

        A no-op at most once, where the ack came before the delivery. Raises AlreadySettled, LeaseLost, Closed.
        """
        ledger = self._batch.ledger
        if ledger.acked_first:
            return
        token = self._token
        if self._claimed or ledger.outstanding.pop(token, None) is None or ledger.born != _fork.generation:
            ledger.explain(self)
        ledger.settling[token] = self._batch
        if ledger.telling:
            ledger.watched[token] = self
        self._claimed = True
        ledger.acks.append(token)
        if not ledger.noted:
            ledger.noted = True
            ledger.wake.set()
        if ledger.over:
            ledger.overtaken()

    def nack(self, delay: float = 0.0) -> None:
        """Give the message back, to be handed out again `delay` seconds from now at the earliest.

        After the last attempt that the subscription allows it goes to the dead letters. Never blocks. Raises as
        `ack`, and NotSupported for a delay that this broker cannot keep.
        """
        self._batch.ledger.owner(self)._nack(self, delay)

    def reject(self, reason: str = "rejected") -> None:
        """To the dead letters, with the reason: a confirmed send, then the ack. It may double there, it is never
        lost. Never blocks. Raises as `ack`, and NotSupported when the subscription has no dead letters."""
        self._batch.ledger.owner(self)._reject(self, reason)

    def extend(self, seconds: float | None = None) -> None:
        """Asks for the lease to last `seconds` (default: one lease) from now. brokerkit renews by itself; this is
        for handlers that outlast the stated maximum. Raises NotSupported where leases are fixed, and as `ack`."""
        self._batch.ledger.owner(self)._extend(self, seconds)

    def __repr__(self) -> str:
        return f"Delivery(id={self.id!r}, topic={self.topic!r}, attempt={self.attempt}, {self.state})"


class Link:
    """What the deliveries of one consumer know of it. Its close cuts it: nothing that a user may keep holds, from then
    on, anything that is the user's, so that deliveries need not be tracked by the cycle collector."""

    __slots__ = ("born", "closed", "consumer", "wake")

    def __init__(self, consumer: Consumer, wake: Event, born: int) -> None:
        self.consumer: Consumer | None = consumer
        self.wake = wake
        """Set: there is something for the settler."""
        self.born = born
        self.closed = False


class Batch:
    """What deliveries fetched together have in common.

    `ended` holds how settling ended, by token, where that was not the usual end, `settled`: what is acked need not be
    kept until the broker answers, only its token.
    """

    __slots__ = ("ended", "ledger", "received")

    def __init__(self, ledger: Ledger, received: float) -> None:
        self.ledger = ledger
        self.received = received
        """time.monotonic() at receipt."""
        self.ended: dict[Any, State] | None = None

    def end(self, token: Token, state: State) -> None:
        if self.ended is None:
            self.ended = {token: state}
        else:
            self.ended[token] = state


class Ledger:
    """The deliveries of one session, and what becomes of them. Tokens never leave their session."""

    __slots__ = (
        "acked_first",
        "acks",
        "born",
        "given_back",
        "largest",
        "link",
        "nacks",
        "noted",
        "outstanding",
        "over",
        "rejects",
        "sent",
        "settling",
        "telling",
        "traits",
        "wake",
        "watched",
        "why",
    )

    def __init__(self, link: Link, acked_first: bool, telling: bool) -> None:
        """`telling`: somebody wants to hear of each delivery that has ended."""
        self.link = link
        self.wake = link.wake
        self.born = link.born
        self.acked_first = acked_first
        self.traits = Traits()
        """Its receiver's."""
        self.over = False
        self.why = ""
        self.noted = False
        """The settler was woken for acks that it has not passed on yet."""
        self.outstanding: dict[Any, Delivery] = {}
        self.settling: dict[Any, Batch] = {}
        self.telling = telling
        self.watched: dict[Any, Delivery] = {}
        """What is settling, if `telling`."""
        self.given_back: set[Any] = set()
        self.acks: list[Any] = []
        self.nacks: list[Nack] = []
        self.rejects: list[Reject] = []
        self.sent = 0
        self.largest = 0

    def bytes_held(self) -> int:
        """Looks at each: `largest` says when that can be needed."""
        held = 0
        for delivery in list(self.outstanding.values()):
            held += cast(int, delivery._raw.size)
        return held

    def take_in(self, incoming: Sequence[Any], now: float) -> list[Delivery]:
        """What was received at `now` is outstanding from here on."""
        batch = Batch(self, now)
        outstanding = self.outstanding
        largest = self.largest
        deliveries: list[Delivery] = []
        for raw in incoming:
            size: int = raw.size
            if size > largest:
                largest = size
            token = raw.token
            delivery = Delivery(raw, token, batch)
            outstanding[token] = delivery
            deliveries.append(delivery)
        self.largest = largest
        return deliveries

    def settle(self, delivery: Delivery, token: Token) -> None:
        """It is outstanding no more, and its end will come."""
        self.settling[token] = delivery._batch
        if self.telling:
            self.watched[token] = delivery
        delivery._claimed = True
        if self.over:
            self.overtaken()

    def owner(self, delivery: Delivery) -> Consumer:
        """Who settles what is not simply acked; raises, as for a delivery that cannot be settled, once it is closed."""
        consumer = self.link.consumer
        if consumer is None:
            self.explain(delivery)
            raise Closed("the consumer was closed")
        return consumer

    def claim(self, delivery: Delivery) -> None:
        """Takes the delivery out of what is outstanding, for good; raises when it is not there any more."""
        _fork.check(self.born, "delivery")
        if self.acked_first:
            raise AlreadySettled("at most once, a delivery is acked before it is handed over")
        token = delivery._token
        if delivery._claimed or self.outstanding.pop(token, None) is None:
            self.explain(delivery)
        self.settle(delivery, token)

    def ack_first(self, delivery: Delivery) -> None:
        """Acks it before it is handed over, unless it was lost meanwhile."""
        token = delivery._token
        if self.outstanding.pop(token, None) is not None:
            self.settle(delivery, token)
            self.acks.append(token)

    def give_back(self, deliveries: Sequence[Delivery]) -> int:
        """Nacks those that are still outstanding, and nobody will settle any more. Returns how many."""
        count = 0
        for delivery in deliveries:
            token = delivery._token
            if self.outstanding.pop(token, None) is not None:
                delivery._batch.end(token, "lost")
                self.settling[token] = delivery._batch
                self.given_back.add(token)
                self.nacks.append(Nack(token, 0.0, unstarted=True))
                count += 1
        return count

    def explain(self, delivery: Delivery) -> None:
        """Raises what says why `delivery` cannot be settled."""
        _fork.check(self.born, "delivery")
        state = delivery.state
        if self.link.closed and (state in ("pending", "lost") or delivery._token in self.given_back):
            raise Closed("the consumer was closed; the message has been given back")
        if state == "lost" or (state == "pending" and self.over):
            raise LeaseLost(f"message {delivery.id} is no longer this consumer's: {self.why or 'its lease is over'}")
        raise AlreadySettled(f"message {delivery.id} was settled before (now {state})")

    def drop(self, tokens: Sequence[Any], reason: str) -> list[Any]:
        """These are somebody else's now. Returns those of them that were outstanding."""
        self.why = reason
        dropped: list[Any] = []
        for token in tokens:
            delivery = self.outstanding.pop(token, None)
            if delivery is not None:
                delivery._batch.end(token, "lost")
                dropped.append(token)
        return dropped

    def forget(self) -> list[Delivery]:
        """How what is settling ends is not known, and never will be. Returns the watched ones among it."""
        told: list[Delivery] = []
        for token in list(self.settling):
            batch = self.settling.get(token)
            if batch is not None:
                if not self._is(batch, token, "lost"):
                    batch.end(token, "unknown")
                    if (delivery := self.watched.pop(token, None)) is not None:
                        told.append(delivery)
                self.settling.pop(token, None)
        return told

    def overtaken(self) -> None:
        """The session ended while something was being settled, which came too late to be forgotten with the rest."""
        told = self.forget()
        consumer = self.link.consumer
        if consumer is not None:
            consumer._ended.extend(told)
            self.wake.set()

    def settled(self, settlements: Sequence[Settlement]) -> None:
        """From the receiver, in any thread."""
        settling = self.settling
        told: list[Delivery] = []
        for tokens, end, _ in settlements:
            if end is End.SENT:
                for token in tokens:
                    batch = settling.get(token)
                    if batch is not None and not self._is(batch, token, "sent"):
                        batch.end(token, "sent")
                        self.sent += 1
            elif end is End.SETTLED and not self.telling:
                for token in tokens:
                    batch = settling.pop(token, None)
                    if batch is not None and batch.ended is not None:
                        self._ended(batch, token, "settled")
            else:
                state = cast("State", end.value)
                for token in tokens:
                    batch = settling.get(token)
                    if batch is not None:
                        self._ended(batch, token, state)
                        settling.pop(token, None)
                        if self.telling and (delivery := self.watched.pop(token, None)) is not None:
                            told.append(delivery)
        if (consumer := self.link.consumer) is not None:
            consumer._ended.extend(told)
            consumer._answered()

    def _ended(self, batch: Batch, token: Token, state: State) -> None:
        """Notes an end, other than of what was given back: that is known already."""
        if self._is(batch, token, "sent"):
            self.sent -= 1
            batch.end(token, state)
        elif state != "settled" and not self._is(batch, token, "lost"):
            batch.end(token, state)

    def _is(self, batch: Batch, token: Token, state: State) -> bool:
        ended = batch.ended
        return ended is not None and ended.get(token) == state


def take(ready: Any, most: int) -> list[Delivery]:
    """Up to `most` out of a deque of deliveries, without those that were lost while they waited there."""
    taken: list[Delivery] = []
    popleft = ready.popleft
    try:
        while len(taken) < most:
            delivery: Delivery = popleft()
            if delivery._batch.ended is None or delivery.state == "pending":
                taken.append(delivery)
    except IndexError:
        pass
    return taken
