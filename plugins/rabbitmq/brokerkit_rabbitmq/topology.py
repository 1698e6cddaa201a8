"""Names and arguments of what is declared: a topic is a fanout exchange, a subscription a queue bound to it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from brokerkit.driver import Subscription
from brokerkit.errors import ConfigurationError, NotSupported
from brokerkit_rabbitmq.sender import Delayed, Route

NATIVE = ("queue", "exchange", "routing_key", "exchange_arguments")
"""What `native=` may name beside `x-…` queue arguments."""

_EXPIRY = 3600 * 1000
"""Milliseconds that a delay queue outlives its last use and its delay."""


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


def exchange_name(topic: str, native: Mapping[str, Any]) -> str:
    return str(native.get("exchange", topic))


def route(topic: str, subscription: str | None, native: Mapping[str, Any]) -> Route:
    """Where a sender publishes: the topic's exchange, or one subscription's queue by the default exchange."""
    if subscription is not None:
        return "", queue_name(topic, subscription, native)
    return exchange_name(topic, native), str(native.get("routing_key", ""))


def queue_arguments(
    kind: str, subscription: Subscription, version: tuple[int, ...], dead_exchange: str | None
) -> dict[str, Any]:
    """The arguments of a subscription's queue; its native ones win."""
    arguments: dict[str, Any] = {"x-queue-type": kind}
    if kind == "quorum":
        if subscription.attempts is not None and dead_exchange is not None:
            # A limit counts returns: the message goes to the dead letters at the return after it.
            arguments["x-delivery-limit"] = subscription.attempts - 1
        elif version >= (4, 0):
            # 4.x drops a message after 20 returns unless told otherwise; -1 on 3.10 means at the first.
            arguments["x-delivery-limit"] = -1
        if dead_exchange is not None:
            arguments |= {
                "x-dead-letter-exchange": dead_exchange,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            }
    if subscription.handling_seconds is not None and takes_timeout(kind, version):
        arguments["x-consumer-timeout"] = int(subscription.handling_seconds * 1000)
    native = subscription.native
    arguments |= {name: value for name, value in native.items() if name.startswith("x-")}
    return arguments


def takes_timeout(kind: str, version: tuple[int, ...]) -> bool:
    """Whether a queue of this broker has a consumer timeout of its own."""
    return version >= (3, 12) and (kind == "quorum" or version < (4, 3))


def delayed(target: Route) -> Delayed:
    """For each delay a quorum queue whose messages go back to `target` when their time is over, confirmed."""
    exchange, routing_key = target

    def queue(milliseconds: int) -> tuple[str, dict[str, Any]]:
        ttl = coarse(milliseconds)
        to = f"topic--{exchange}--{routing_key}" if exchange else f"queue--{routing_key}"
        if len(to.encode()) > 200:
            to = hashlib.sha256(to.encode()).hexdigest()
        return f"brokerkit-delay--{ttl}--{to}", {
            "x-queue-type": "quorum",
            "x-message-ttl": ttl,
            "x-expires": min(ttl + _EXPIRY, 2**32 - 1),
            "x-dead-letter-exchange": exchange,
            "x-dead-letter-routing-key": routing_key,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }

    return queue


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
