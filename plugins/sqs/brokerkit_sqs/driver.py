"""Amazon SQS: standard queues named `topic--subscription`, SNS before them where a topic has several.

The driver's parts: settings.py (what the URL says), clients.py (boto3), quick.py (its calls that every message takes
part in), errors.py, topology.py (queues and SNS topics), encoding.py (messages on the wire), batches.py (threads),
sender.py, receiver.py, claims.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

import boto3

from brokerkit.driver import (
    Capabilities,
    Driver,
    Outcomes,
    Receiver,
    ReceiverEvents,
    Sender,
    SenderEvents,
    Settled,
    Subscription,
    Traits,
)
from brokerkit.errors import Closed, ConfigurationError, ConnectionLost
from brokerkit.guarantees import Claims, Guarantee
from brokerkit.plugins import Url
from brokerkit_sqs.claims import claims_of
from brokerkit_sqs.clients import Clients
from brokerkit_sqs.receiver import SqsReceiver
from brokerkit_sqs.sender import SqsSender
from brokerkit_sqs.settings import SqsSettings, place_of
from brokerkit_sqs.topology import SNS_LIMIT, SQS_LIMIT, Topology, attaches

T = TypeVar("T")


class SqsDriver(Driver):
    blocking = False

    def __init__(self, url: Url, settings: SqsSettings) -> None:
        self._settings = settings
        self._place = place_of(url, settings)
        self._clients = Clients(self._place, settings)
        self._topology = Topology(self._clients, settings)
        self._closed = False
        self._attached = False
        self._limit = SNS_LIMIT if settings.fan_out == "sns" else SQS_LIMIT
        self.capabilities = Capabilities(
            producer_guarantees=frozenset({Guarantee.AT_MOST_ONCE, Guarantee.AT_LEAST_ONCE}),
            consumer_guarantees=frozenset({Guarantee.AT_MOST_ONCE, Guarantee.AT_LEAST_ONCE}),
            delayed_send=settings.fan_out != "sns",
            max_body_bytes=self._limit,
        )

    def claims(self, producer: Guarantee, consumer: Guarantee) -> Claims:
        return claims_of(self._settings, self._limit, producer, consumer, attached=self._attached)

    def describe(self) -> Mapping[str, str]:
        self._check()
        self._topology.queues_of("brokerkit-describes")  # whether it answers at all
        settings = self._settings
        emulators = {"elasticmq": "ElasticMQ", "moto": "moto"}
        product = emulators.get(settings.emulator or "", "SQS" if self._place.endpoint else "Amazon SQS")
        return {
            "product": product,
            "region": self._place.region,
            "endpoint": self._place.endpoint or "Amazon's",
            "client": f"boto3 {boto3.__version__}",
            "fan_out": settings.fan_out,
            "lease_seconds": str(settings.lease_seconds),
            "wait_seconds": str(settings.wait_seconds),
            "parallel": str(settings.parallel),
        }

    def declare(self, topic: str, subscriptions: Sequence[Subscription], native: Mapping[str, Any]) -> None:
        self._check()
        self._topology.declare(topic, subscriptions, native)

    def delete(self, topic: str, subscription: str | None) -> None:
        self._check()
        self._topology.delete(topic, subscription)

    def depth(self, topic: str, subscription: str) -> int:
        """Ready, in flight and delayed, each of which SQS calls approximate."""
        self._check()
        attributes = self._topology.attributes(self._topology.queue(topic, Subscription(subscription)).url)
        kinds = ("", "NotVisible", "Delayed")
        return sum(int(attributes.get(f"ApproximateNumberOfMessages{kind}") or 0) for kind in kinds)

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
        self._check()
        route = _within(timeout, lambda: self._topology.route(topic, subscription, native))
        self._attached = self._attached or attaches(native)
        self._limit = min(self._limit, route.limit)
        return SqsSender(self._clients, self._settings, topic, route, guarantee, outcomes, events)

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
        self._check()
        if attaches(subscription.native) and len(topics) > 1:
            raise ConfigurationError("an attached queue is one topic: open a consumer for each")
        queues = _within(timeout, lambda: [self._topology.queue(topic, subscription) for topic in topics])
        self._attached = self._attached or attaches(subscription.native)
        limits = {(queue.attempts, queue.dead_letter) for queue in queues}
        attempts, dead_letter = limits.pop() if len(limits) == 1 else (None, None)
        traits = Traits(
            nack="native",
            nack_delay="native",
            dead_letters="layer",
            attempts=attempts,
            dead_letter=dead_letter,
            lease_seconds=float(self._settings.lease_seconds),
            renewable=True,
            answers_acks=True,
        )
        return SqsReceiver(
            self._clients, self._settings, queues, traits, guarantee, settled, events, prefetch, prefetch_bytes
        )

    def close(self, timeout: float) -> None:
        self._closed = True
        self._clients.close()

    def _check(self) -> None:
        if self._closed:
            raise Closed("this driver is closed")


def _within(timeout: float, ask: Callable[[], T]) -> T:
    """What `ask` returns or raises, or ConnectionLost: boto3 bounds its calls one by one, and an opening makes some."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="brokerkit sqs opening", daemon=True).start()
    try:
        return answer.result(timeout)
    except FutureTimeout:
        raise ConnectionLost(f"SQS did not answer within {timeout:g} s") from None
