"""connect and Broker: where everything else comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from brokerkit import _fork
from brokerkit.consumer import Consumer, Delivery
from brokerkit.driver import Capabilities, Driver, Position, Start, Subscription
from brokerkit.errors import Closed, ConfigurationError, GuaranteeNotOffered, NotSupported
from brokerkit.events import OnEvent, Reporter
from brokerkit.guarantees import Claims, Guarantee
from brokerkit.producer import Producer, checked_timeout
from brokerkit.transactions import Retry, Transactions
from brokerkit.url import parse

_Opened = TypeVar("_Opened", Producer, Consumer, Transactions)
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
        self._open: list[Producer | Consumer | Transactions] = []
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
        """What may be lost, doubled and reordered at each failure point under this pair of guarantees."""
        self._check()
        return self.driver.claims(_guarantee(producer), _guarantee(consumer))

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
        if asked not in self.capabilities.producer_guarantees:
            raise GuaranteeNotOffered(
                f"{self._name}, as configured, does not offer {asked} to producers (it offers "
                f"{_listed(self.capabilities.producer_guarantees)}): a send that is tried again may be stored twice. "
                "Send at_least_once with ids of your own, and let the consumer recognise repetitions by id"
            )
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
        if asked not in self.capabilities.consumer_guarantees:
            raise GuaranteeNotOffered(
                f"{self._name}, as configured, does not offer {asked} to consumers; it offers "
                f"{_listed(self.capabilities.consumer_guarantees)}"
            )
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

    def transactions(
        self,
        *topics: str,
        subscription: str,
        instance: str | None = None,
        store: str | None = None,
        on_error: Literal["raise"] | Retry = "raise",
        max_messages: int = 100,
        max_bytes: int = 64 * 1024 * 1024,
        max_seconds: float = 0.0,
        timeout: float = 1.0,
    ) -> Transactions:
        """Deliveries in, messages out, committed together or not at all; iterate it.

        A transaction takes in at most `max_messages`. With `max_seconds`, iterating its deliveries takes in more as
        they come, until it has `max_messages` or about `max_bytes`, is so many seconds old, or nothing comes.
        `instance` names the slot whose predecessor is fenced: the same at each start of a worker, and never that of
        two that live. `on_error` says what an exception in the block leads to, after the abort.

        Raises NotSupported where the broker has no transactions, with what to use instead; NotFound, ConnectionLost,
        AccessRefused, PositionLost, ConfigurationError.
        """
        self._check()
        _positive("max_messages", max_messages)
        _positive("max_bytes", max_bytes)
        if store is not None:
            raise NotSupported("stores come with brokerkit.once; leave store out to use the broker's own transactions")
        if not self.capabilities.transactions:
            raise NotSupported(
                f"{self._name} has no transactions of its own: record the message ids in the database transaction of "
                "the effect, and ack after it"
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
