"""Names and arguments of what is declared: a topic is a fanout exchange, a subscription a queue bound to it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from brokerkit.driver import Subscription, Traits
from brokerkit.errors import ConfigurationError, NotSupported

Route = tuple[str, str]
"""Exchange and routing key."""

NATIVE = ("queue", "exchange", "routing_key", "exchange_arguments")
"""What `native=` may name beside `x-…` queue arguments."""

LONGEST_DELAY = 48 * 24 * 3600.0
"""Seconds; a TTL is 32 bits of milliseconds."""
_EXPIRY = 3600 * 1000
"""Milliseconds that a delay queue outlives its last use and its delay."""

_SAFELY = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
"""A quorum queue's hop to another place is confirmed; it needs the overflow that drops nothing."""


def checked(native: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raises ConfigurationError for a name that is not known, or a value of a wrong type."""
    for name, value in native.items():
        if name not in NATIVE and not name.startswith("x-"):
            raise ConfigurationError(
                f"unknown native setting {name!r} for rabbitmq; known: {', '.join(NATIVE)} and queue arguments (x-…)"
            )
        if name in ("queue", "exchange", "routing_key") and (not isinstance(value, str) or len(value.encode()) > 255):
            raise ConfigurationError(f"native setting {name!r} must be a str of at most 255 bytes")
    return native


def queue_name(topic: str, subscription: str, native: Mapping[str, Any]) -> str:
    return str(native.get("queue") or f"{topic}--{subscription}")


def route(topic: str, subscription: str | None, native: Mapping[str, Any]) -> Route:
    """Where a sender publishes: the topic's exchange, or one subscription's queue by the default exchange."""
    if subscription is not None:
        return "", queue_name(topic, subscription, native)
    return str(native.get("exchange", topic)), str(native.get("routing_key", ""))


def queue_arguments(kind: str, subscription: Subscription, version: tuple[int, ...]) -> dict[str, Any]:
    """The arguments of a subscription's queue; its native ones win."""
    arguments: dict[str, Any] = {"x-queue-type": kind}
    if kind == "quorum":
        if subscription.attempts is not None and subscription.dead_letter is not None:
            # A limit counts returns: the message goes to the dead letters at the return after it.
            arguments["x-delivery-limit"] = subscription.attempts - 1
        elif version >= (4, 0):
            # 4.x drops a message after 20 returns unless told otherwise; -1 on 3.10 means at the first.
            arguments["x-delivery-limit"] = -1
        if subscription.dead_letter is not None:
            arguments |= {"x-dead-letter-exchange": subscription.dead_letter, **_SAFELY}
    if subscription.handling_seconds is not None and takes_timeout(kind, version):
        arguments["x-consumer-timeout"] = int(subscription.handling_seconds * 1000)
    return arguments | {name: value for name, value in subscription.native.items() if name.startswith("x-")}


def takes_timeout(kind: str, version: tuple[int, ...]) -> bool:
    """Whether a queue of this broker has a consumer timeout of its own."""
    return version >= (3, 12) and (kind == "quorum" or version < (4, 3))


def traits(kind: str, subscription: Subscription, version: tuple[int, ...]) -> Traits:
    """How a subscription of this kind behaves. Classic queues count nothing, so there the layer counts."""
    return Traits(
        nack="republish" if kind == "classic" and subscription.attempts is not None else "native",
        nack_delay="republish",
        dead_letters="layer",
        attempts=subscription.attempts,
        dead_letter=subscription.dead_letter,
        lease_seconds=subscription.handling_seconds if takes_timeout(kind, version) else None,
        renewable=False,
        answers_acks=False,
    )


def delay_queue(target: Route, milliseconds: int) -> tuple[str, dict[str, Any]]:
    """A quorum queue whose messages go back to `target`, confirmed, when their time is over: name and arguments."""
    exchange, routing_key = target
    to = f"topic--{exchange}--{routing_key}" if exchange else f"queue--{routing_key}"
    if len(to.encode()) > 200:
        to = hashlib.sha256(to.encode()).hexdigest()
    return f"brokerkit-delay--{milliseconds}--{to}", {
        "x-queue-type": "quorum",
        "x-message-ttl": milliseconds,
        "x-expires": min(milliseconds + _EXPIRY, 2**32 - 1),
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-routing-key": routing_key,
        **_SAFELY,
    }


def coarse(milliseconds: int) -> int:
    """Rounded up to two digits, so that delays with jitter share few queues. Never early, at most 10 % late."""
    step = int(10 ** max(0, len(str(milliseconds)) - 2))
    return -(-milliseconds // step) * step


def no_earliest(subscription: Subscription) -> None:
    if subscription.start != "now":
        raise NotSupported(
            "a RabbitMQ queue holds what is sent after it was declared: start='earliest' is not there, declare the "
            "subscription before the first send"
        )
    if subscription.retry == "block":
        raise NotSupported("RabbitMQ delays a nacked message while the others go on: leave retry out")
