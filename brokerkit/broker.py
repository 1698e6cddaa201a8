"""connect and Broker: where everything else comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from brokerkit import _fork
from brokerkit.consumer import Consumer, Delivery
from brokerkit.driver import Capabilities, Driver, Position, Start, Subscription
from brokerkit.errors import Closed, ConfigurationError, GuaranteeNotOffered, NotSupported
from brokerkit.events import OnEvent, Reporter
from brokerkit.guarantees import Claims, Guarantee
from brokerkit.producer import Producer, checked_timeout
from brokerkit.transacting import Retry
from brokerkit.transactions import Transactions
from brokerkit.url import parse

if TYPE_CHECKING:
    from brokerkit.once.transactions import StoreTransactions

_Opened = TypeVar("_Opened", "Producer", "Consumer", "Transactions", "StoreTransactions")
_NAME = re.compile(r"[A-Za-z](?!.*--)[A-Za-z0-9_-]{2,37}")


def connect(url: str, *, on_event: OnEvent | None = None, **settings: Any) -> Broker:
    """The broker at `url`; keywords override the URL's query parameters.

    Nothing is sent yet: the first operation connects. `on_event` is called for whatever happens to producers and
    consumers beside their work. Raises ConfigurationError.
    """
    plugin, parsed, validated = parse(url, settings)
    return Broker(plugin.open(parsed, validated), plugin.name, on_event)


class Broker:
    """One broker. Thread-safe; a context manager, whose exit closes what was opened from it.

    Topics and subscriptions have portable names: 3 to 38 letters, digits, `-` and `_`, a letter first, no `--`.
    What is attached by `native=` keeps the name it has.
    """

    def __init__(self, driver: Driver, name: str, on_event: OnEvent | None = None) -> None:
        self.driver = driver
        """The plugin's driver; for plugins' own tests."""
        self._name = name
        self._on_event = on_event
        self._declared: dict[tuple[str, str], Subscription] = {}
        self._open: list[Producer | Consumer | Transactions | StoreTransactions] = []
        self._closed = False
        self._born = _fork.generation

    @property
    def capabilities(self) -> Capabilities:
        """What this broker can do, as configured."""
        return self.driver.capabilities

    def claims(
        self,
        producer: Guarantee | str = Guarantee.AT_LEAST_ONCE,
        consumer: Guarantee | str = Guarantee.AT_LEAST_ONCE,
    ) -> Claims:
        """What may be lost, doubled and reordered at each failure point under this pair of guarantees; for consumers
        exactly_once is what `transactions` promises. Raises GuaranteeNotOffered."""
        self._check()
        asked, taken = _guarantee(producer), _guarantee(consumer)
        self._offered("producers", asked, self.capabilities.producer_guarantees)
        if taken is Guarantee.EXACTLY_ONCE and not self.capabilities.transactions:
            raise GuaranteeNotOffered(f"{self._name}, as configured, has no transactions: nothing is claimed of them")
        if taken is not Guarantee.EXACTLY_ONCE:
            self._offered("consumers", taken, self.capabilities.consumer_guarantees)
        return self.driver.claims(asked, taken)

    def describe(self) -> Mapping[str, str]:
        """Product, version and the settings that matter. No secrets. Connects."""
        self._check()
        return self.driver.describe()

    def declare(
        self,
        topic: str,
        subscriptions: Iterable[str] = (),
        *,
        start: Start = "now",
        attempts: int | None = None,
        dead_letter: str | None = None,
        retry: Literal["topic", "block"] | None = None,
        handling_seconds: float | None = None,
        native: Mapping[str, Any] | None = None,
    ) -> None:
        """Creates the topic and its subscriptions where they are missing. Idempotent.

        - `start`: `now`, or `earliest` where the broker keeps what was sent before.
        - `attempts`: after so many a message goes to `dead_letter` (default: the topic's name with `-dead`).
        - `retry`: where the broker cannot delay a nack by itself, `topic` (others go on, order is given up) or
          `block` (the order is kept, later messages wait).
        - `handling_seconds`: the longest a handler may take, from which leases that cannot be renewed are set.
        - `native`: the broker's own settings for what is created.

        Raises ConfigurationError when something of the name is there with other settings: it is never changed.
        """
        self._check()
        if isinstance(subscriptions, str):
            raise ConfigurationError("subscriptions is a list of names, not one name: subscriptions=[name]")
        check_name("topic", topic)
        if attempts is not None and (isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1):
            raise ConfigurationError(f"attempts must be a whole number of at least 1, got {attempts!r}")
        if attempts is not None and dead_letter is None:
            dead_letter = f"{topic}-dead"
        if dead_letter is not None:
            check_name("dead-letter topic", dead_letter)
        if start not in ("now", "earliest"):
            raise ConfigurationError(f"start is 'now' or 'earliest', not {start!r}")
        if handling_seconds is not None and not handling_seconds > 0:
            raise ConfigurationError(f"handling_seconds must be above zero, got {handling_seconds!r}")
        made = [
            Subscription(
                check_name("subscription", name),
                start,
                attempts,
                dead_letter,
                retry,
                handling_seconds,
                native or {},
            )
            for name in subscriptions
        ]
        self.driver.declare(topic, made, native or {})
        self._declared.update({(topic, subscription.name): subscription for subscription in made})

    def delete(self, topic: str, subscription: str | None = None) -> None:
        """Removes a subscription, or a topic with all of its subscriptions. What is missing is no error."""
        self._check()
        self.driver.delete(topic, subscription)

    def depth(self, topic: str, subscription: str) -> int:
        """Messages that the subscription still has to settle, as exactly as the broker tells. Raises NotFound, and
        NotSupported where it does not tell."""
        self._check()
        return self.driver.depth(topic, subscription)

    def producer(
        self,
        topic: str,
        guarantee: Guarantee | str = Guarantee.AT_LEAST_ONCE,
        *,
        delivery_timeout: float = 30.0,
        max_in_flight: int = 10_000,
        max_in_flight_bytes: int = 64 * 1024 * 1024,
        when_full: Literal["block", "fail"] = "block",
        full_timeout: float = 30.0,
        native: Mapping[str, Any] | None = None,
        on_event: OnEvent | None = None,
        timeout: float = 10.0,
    ) -> Producer:
        """Opens a producer of `topic` within `timeout` seconds.

        `native` attaches to what exists, in the broker's own words (an exchange with a routing key). A send takes
        at most `delivery_timeout` seconds to end. At most `max_in_flight` messages and `max_in_flight_bytes` are
        in flight; beyond, a send waits `full_timeout` seconds for room, or fails at once.

        Raises NotFound, ConnectionLost, AccessRefused, GuaranteeNotOffered, ConfigurationError.
        """
        self._check()
        asked = _guarantee(guarantee)
        self._offered("producers", asked, self.capabilities.producer_guarantees)
        if not native:
            check_name("topic", topic)
        if when_full not in ("block", "fail"):
            raise ConfigurationError(f"when_full is 'block' or 'fail', not {when_full!r}")
        _positive("max_in_flight", max_in_flight)
        _positive("max_in_flight_bytes", max_in_flight_bytes)
        producer = Producer(
            self.driver,
            topic,
            asked,
            Reporter(f"producer of {topic}", (self._on_event, on_event)),
            native=native,
            delivery_timeout=checked_timeout(delivery_timeout),
            max_in_flight=max_in_flight,
            max_in_flight_bytes=max_in_flight_bytes,
            when_full=when_full,
            full_timeout=checked_timeout(full_timeout),
            open_timeout=checked_timeout(timeout),
        )
        return self._remember(producer)

    def consumer(
        self,
        *topics: str,
        subscription: str,
        guarantee: Guarantee | str = Guarantee.AT_LEAST_ONCE,
        prefetch: int = 500,
        prefetch_bytes: int = 64 * 1024 * 1024,
        attempts: int | None = None,
        dead_letter: str | None = None,
        retry: Literal["topic", "block"] | None = None,
        handling_seconds: float | None = None,
        native: Mapping[str, Any] | None = None,
        positions: Callable[[Sequence[Position]], Mapping[Hashable, Position]] | None = None,
        max_lease: float = 3600.0,
        on_event: OnEvent | None = None,
        on_end: Callable[[Delivery], object] | None = None,
        timeout: float = 10.0,
    ) -> Consumer:
        """Opens a consumer of the subscription within `timeout` seconds.

        At most `prefetch` messages and `prefetch_bytes` bytes are in flight. `attempts`, `dead_letter`, `retry` and
        `handling_seconds` say how the subscription was declared, where this process did not declare it and the
        broker cannot tell. `native` attaches to what exists. `positions` is told where each partition goes on and
        may answer with other places. Leases are renewed for at most `max_lease` seconds a delivery. `on_end` is
        called with each delivery once its settlement ended, on the consumer's own thread.

        Raises NotFound, ConnectionLost, AccessRefused, GuaranteeNotOffered, PositionLost, ConfigurationError.
        """
        self._check()
        asked = _guarantee(guarantee)
        if asked is Guarantee.EXACTLY_ONCE:
            raise GuaranteeNotOffered(
                "a consumer alone cannot give exactly_once: use broker.transactions(…), where acks, sends and rows "
                "are committed together, or at_least_once with effects that recognise the message id"
            )
        self._offered("consumers", asked, self.capabilities.consumer_guarantees)
        _positive("prefetch", prefetch)
        _positive("prefetch_bytes", prefetch_bytes)
        if positions is not None and not self.capabilities.positions:
            raise NotSupported(f"{self._name} keeps no positions that a consumer could choose: leave positions out")
        consumer = Consumer(
            self.driver,
            self._topics(topics, native),
            self._known(topics, subscription, attempts, dead_letter, retry, handling_seconds, native),
            asked,
            Reporter(f"consumer of {subscription}", (self._on_event, on_event)),
            prefetch=prefetch,
            prefetch_bytes=prefetch_bytes,
            positions=positions,
            max_lease=checked_timeout(max_lease),
            on_end=on_end,
            open_timeout=checked_timeout(timeout),
        )
        return self._remember(consumer)

    @overload
    def transactions(
        self,
        *topics: str,
        subscription: str,
        instance: str | None = ...,
        store: None = None,
        on_error: Literal["raise"] | Retry = ...,
        max_messages: int = ...,
        max_bytes: int = ...,
        max_seconds: float = ...,
        timeout: float = ...,
    ) -> Transactions: ...
    @overload
    def transactions(
        self,
        *topics: str,
        subscription: str,
        instance: None = None,
        store: str,
        checkpoint: bool = ...,
        outbox: str = ...,
        on_error: Literal["raise"] | Retry = ...,
        max_messages: int = ...,
        max_bytes: int = ...,
        max_seconds: float = ...,
        timeout: float = ...,
    ) -> StoreTransactions: ...
    def transactions(
        self,
        *topics: str,
        subscription: str,
        instance: str | None = None,
        store: str | None = None,
        checkpoint: bool = False,
        outbox: str = "default",
        on_error: Literal["raise"] | Retry = "raise",
        max_messages: int = 100,
        max_bytes: int = 64 * 1024 * 1024,
        max_seconds: float = 0.0,
        timeout: float = 1.0,
    ) -> Transactions | StoreTransactions:
        """Deliveries in, messages or rows out, committed together or not at all; iterate it.

        A transaction takes in at most `max_messages`. With `max_seconds`, it takes in more as they come, until it has
        `max_messages` or about `max_bytes`, is so many seconds old, or nothing comes; without `store`, while its
        deliveries are iterated. `instance` names the slot whose predecessor is fenced: the same at each start of a
        worker, and never that of two that live. `on_error` says what an exception in the block leads to, after the
        abort. `store` is the URL of a database: its rows and the marks of the messages are committed together, on any
        broker, and messages that this subscription has seen are left out; what is sent goes into its `outbox` of that
        name, from which a relay sends it. With `checkpoint`, where partitions are read in order by one consumer at a
        time (Kafka), the place in each partition is kept there instead of a mark for each message.

        Raises NotSupported where the broker has no transactions, with what to use instead; NotFound, ConnectionLost,
        AccessRefused, PositionLost, ConfigurationError.
        """
        self._check()
        _positive("max_messages", max_messages)
        _positive("max_bytes", max_bytes)
        if isinstance(on_error, Retry):
            _positive("attempts", on_error.attempts)
        elif on_error != "raise":
            raise ConfigurationError(f"on_error is 'raise' or a brokerkit.Retry, not {on_error!r}")
        if store is not None:
            return self._with_store(
                topics,
                subscription,
                store,
                checkpoint,
                outbox,
                instance,
                on_error,
                max_messages,
                max_bytes,
                max_seconds,
                timeout,
            )
        if checkpoint:
            raise ConfigurationError("checkpoint= keeps places in a store: pass store=, the URL of a database")
        if not self.capabilities.transactions:
            raise NotSupported(
                f"{self._name}, as configured, has no transactions of its own: pass store=, the URL of a "
                "database, which commits the message ids together with the effects"
            )
        transactions = Transactions(
            self.driver,
            self._topics(topics, None),
            self._known(topics, subscription, None, None, None, None, None),
            Reporter(f"transactions of {subscription}", (self._on_event,)),
            instance=instance,
            on_error=on_error,
            max_messages=max_messages,
            max_bytes=max_bytes,
            max_seconds=checked_timeout(max_seconds),
            timeout=checked_timeout(timeout),
        )
        return self._remember(transactions)

    def _with_store(
        self,
        topics: Sequence[str],
        subscription: str,
        store: str,
        checkpoint: bool,
        outbox: str,
        instance: str | None,
        on_error: Literal["raise"] | Retry,
        max_messages: int,
        max_bytes: int,
        max_seconds: float,
        timeout: float,
    ) -> StoreTransactions:
        from brokerkit.once.checkpoint import Checkpoint
        from brokerkit.once.stores import store_for
        from brokerkit.once.transactions import StoreTransactions, effects_of

        if instance is not None:
            raise ConfigurationError("instance= is for the broker's own transactions: a store fences by its inbox")
        report = Reporter(f"transactions of {subscription}", (self._on_event,))
        places = None
        if checkpoint:
            if not self.capabilities.positions:
                raise NotSupported(
                    f"{self._name} has no places to keep: leave checkpoint out, the inbox works anywhere"
                )
            places = Checkpoint(store_for(store), store, lambda topic: effects_of(topic, subscription), report)
        consumer = self.consumer(
            *topics,
            subscription=subscription,
            prefetch=max(500, 2 * max_messages),
            positions=None if places is None else places.assigned,
        )
        try:
            if checkpoint and not consumer._session.receiver.traits.ordered_lanes:
                raise NotSupported(
                    f"subscription {subscription!r} on {self._name} does not hand out all messages of a partition in "
                    "order, to one consumer at a time: leave checkpoint out, the inbox works anywhere"
                )
            transactions = StoreTransactions(
                consumer,
                store,
                report,
                on_error=on_error,
                max_messages=max_messages,
                max_bytes=max_bytes,
                max_seconds=checked_timeout(max_seconds),
                timeout=checked_timeout(timeout),
                outbox=outbox,
                checkpoint=places,
            )
        except BaseException:
            consumer.close(5.0)
            raise
        self._open.remove(consumer)  # it is closed with its transactions
        return self._remember(transactions)

    def close(self, timeout: float = 30.0) -> None:
        """Closes what is still open, then the connection. Idempotent."""
        _fork.check(self._born, "broker")
        if self._closed:
            return
        self._closed = True
        for opened in self._open:
            opened.close(timeout)
        self.driver.close(timeout)

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Broker({self._name})"

    def _check(self) -> None:
        _fork.check(self._born, "broker")
        if self._closed:
            raise Closed("the broker is closed: call brokerkit.connect() again")

    def _offered(self, whom: str, asked: Guarantee, offered: frozenset[Guarantee]) -> None:
        """Raises GuaranteeNotOffered, with what to do instead."""
        if asked in offered:
            return
        cure = (
            ": a send that is tried again may be stored twice. Send at_least_once with ids of your own, and let the "
            "consumer recognise repetitions by id"
        )
        raise GuaranteeNotOffered(
            f"{self._name}, as configured, does not offer {asked} to {whom} (it offers {_listed(offered)})"
            + (cure if asked is Guarantee.EXACTLY_ONCE else "")
        )

    def _remember(self, opened: _Opened) -> _Opened:
        """For `close`; what was closed meanwhile is forgotten."""
        self._open = [*(other for other in self._open if not other.closed), opened]
        return opened

    def _topics(self, topics: Sequence[str], native: Mapping[str, Any] | None) -> Sequence[str]:
        if not topics:
            raise ConfigurationError("name at least one topic")
        if not native:
            for topic in topics:
                check_name("topic", topic)
        return topics

    def _known(
        self,
        topics: Sequence[str],
        subscription: str,
        attempts: int | None,
        dead_letter: str | None,
        retry: Literal["topic", "block"] | None,
        handling_seconds: float | None,
        native: Mapping[str, Any] | None,
    ) -> Subscription:
        """What this process declared, with what it is told now on top."""
        if not native:
            check_name("subscription", subscription)
        declared = self._declared.get((topics[0], subscription)) if topics else None
        base = declared or Subscription(subscription)
        if attempts is not None and dead_letter is None and base.dead_letter is None:
            dead_letter = f"{topics[0]}-dead"
        return Subscription(
            subscription,
            base.start,
            attempts if attempts is not None else base.attempts,
            dead_letter or base.dead_letter,
            retry or base.retry,
            handling_seconds if handling_seconds is not None else base.handling_seconds,
            native or base.native,
        )


def check_name(what: str, name: object) -> str:
    """Returns a portable name, or raises ConfigurationError that says what one looks like."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{what} {name!r} is not a portable name: 3 to 38 letters, digits, - and _, a letter first, no --"
        )
    return name


def _guarantee(name: Guarantee | str) -> Guarantee:
    try:
        return Guarantee(name)
    except ValueError:
        raise ConfigurationError(f"guarantee {name!r} is none of {_listed(Guarantee)}") from None


def _listed(guarantees: Iterable[Guarantee]) -> str:
    return ", ".join(guarantee for guarantee in Guarantee if guarantee in guarantees)


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be a whole number of at least 1, got {value!r}")
