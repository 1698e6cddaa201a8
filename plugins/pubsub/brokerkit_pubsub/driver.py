"""The driver of pubsub:// URLs: topics, subscriptions named `topic--subscription`, and what they promise.

What Pub/Sub does not keep of a subscription, the attempts that were asked for, stands in its labels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import grpc
from grpc import StatusCode

from brokerkit.declared import check_same
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
from brokerkit.errors import Closed, ConfigurationError, GuaranteeNotOffered, NotFound, NotSupported
from brokerkit.guarantees import Claims, Guarantee
from brokerkit.plugins import Url, checked
from brokerkit_pubsub import link as pb
from brokerkit_pubsub.claims import MOST_RETENTION, Facts, claims
from brokerkit_pubsub.encoding import MAX_BODY
from brokerkit_pubsub.errors import translated
from brokerkit_pubsub.link import Link
from brokerkit_pubsub.receiver import LONGEST, PubsubReceiver
from brokerkit_pubsub.sender import PubsubSender
from brokerkit_pubsub.settings import Config, Native, PubsubSettings

_TIMEOUT = 10.0
_ATTEMPTS = "brokerkit-attempts"
_LEAST, _MOST = 5, 100
"""Delivery attempts that a dead-letter policy of Pub/Sub's may allow."""


class PubsubDriver(Driver):
    blocking = True

    def __init__(self, url: Url, settings: PubsubSettings) -> None:
        self._config = Config(url, settings)
        self._settings = settings
        consumers = {Guarantee.AT_LEAST_ONCE} | ({Guarantee.AT_MOST_ONCE} if settings.exactly_once else set())
        self.capabilities = Capabilities(
            producer_guarantees=frozenset({Guarantee.AT_MOST_ONCE, Guarantee.AT_LEAST_ONCE}),
            consumer_guarantees=frozenset(consumers),
            max_body_bytes=MAX_BODY,
        )
        self._lock = threading.Lock()
        self._shared: Link | None = None
        self._closed = False
        self._facts: dict[str, Facts] = {}

    # ------------------------------------------------------------ what it promises

    def claims(self, producer: Guarantee, consumer: Guarantee) -> Claims:
        """From the weakest subscription that this driver has declared or opened; before that, from what `declare`
        would create here."""
        settings = self._settings
        planned = Facts(
            settings.ack_deadline,
            settings.ordering,
            settings.exactly_once,
            retention_seconds=float(settings.retention or MOST_RETENTION),
        )
        facts = list(self._facts.values()) or [planned]
        weakest = Facts(
            max(fact.ack_deadline for fact in facts),
            all(fact.ordering for fact in facts),
            all(fact.exactly_once for fact in facts),
            all(fact.known for fact in facts),
            max(fact.retention_seconds for fact in facts),
        )
        return claims(weakest, self._config.emulator, MAX_BODY, producer, consumer)

    def describe(self) -> Mapping[str, str]:
        settings = self._settings
        emulator = self._config.emulator
        found = {
            "product": "Google Pub/Sub" if emulator is None else "Google Pub/Sub emulator",
            "project": self._config.project,
            "endpoint": emulator or settings.endpoint or "global",
            "client": f"google-cloud-pubsub {version('google-cloud-pubsub')}, grpcio {grpc.__version__}",
            "ack_deadline": str(settings.ack_deadline),
            "ordering": str(settings.ordering).lower(),
            "exactly_once": str(settings.exactly_once).lower(),
        }
        return found | {f"client.{name}": value for name, value in settings.client.items()}

    # ------------------------------------------------------------ declaring

    def declare(self, topic: str, subscriptions: Sequence[Subscription], native: Mapping[str, Any]) -> None:
        native = _native(native)
        path = self._config.topic(topic)
        self._create_topic(path, native)
        for subscription in subscriptions:
            _check(subscription)
            if subscription.dead_letter is not None:
                self._create_topic(self._config.topic(subscription.dead_letter), {})
                self._create(subscription.dead_letter, Subscription("dead"), {})
            self._create(topic, subscription, native)

    def _create_topic(self, path: str, native: Mapping[str, Any]) -> None:
        asked = pb.Topic(name=path)
        retention = native.get("topic_retention", self._settings.topic_retention)
        if retention is not None:
            asked.message_retention_duration.seconds = retention
        if not self._created("CreateTopic", asked, f"creating topic {path}") and retention is not None:
            there = self._call("GetTopic", pb.GetTopicRequest(topic=path), f"topic {path}")
            kept = there.message_retention_duration.seconds
            check_same(f"topic {path}", {"topic_retention": retention}, {"topic_retention": kept})

    def _create(self, topic: str, subscription: Subscription, native: Mapping[str, Any]) -> None:
        asked = self._wanted(topic, subscription, native)
        doing = f"creating subscription {asked.name}"
        if not self._created("CreateSubscription", asked, doing):
            there = self._call("GetSubscription", pb.GetSubscriptionRequest(subscription=asked.name), doing)
            self._compare(subscription, asked, there, native)
            asked = there
        elif subscription.start == "earliest":
            from_start = pb.SeekRequest(subscription=asked.name)
            from_start.time.seconds = 1
            self._call("Seek", from_start, f"starting {asked.name} from the earliest message")
        self._facts[asked.name] = _facts(asked)

    def _wanted(self, topic: str, subscription: Subscription, native: Mapping[str, Any]) -> Any:
        settings = self._settings
        asked = pb.Subscription(
            name=self._path(topic, subscription),
            topic=self._config.topic(topic),
            ack_deadline_seconds=native.get("ack_deadline", settings.ack_deadline),
            enable_message_ordering=native.get("ordering", settings.ordering),
            enable_exactly_once_delivery=native.get("exactly_once", settings.exactly_once),
            filter=native.get("filter", ""),
        )
        asked.expiration_policy.SetInParent()  # never: a subscription is durable
        retention = native.get("retention", settings.retention)
        if retention is not None:
            asked.message_retention_duration.seconds = retention
        for name in ("minimum_backoff", "maximum_backoff"):
            if name in native:
                getattr(asked.retry_policy, name).seconds = native[name]
        if subscription.start == "earliest" and not native.get("topic_retention", settings.topic_retention):
            raise ConfigurationError(
                "start='earliest' needs a topic that keeps what was sent: declare it with topic_retention, or "
                "start='now'"
            )
        if subscription.dead_letter is not None:
            policy = asked.dead_letter_policy
            policy.dead_letter_topic = self._config.topic(subscription.dead_letter)
            policy.max_delivery_attempts = max(_LEAST, subscription.attempts or _MOST)
            if subscription.attempts is not None:
                asked.labels[_ATTEMPTS] = str(subscription.attempts)
        return asked

    def _compare(self, subscription: Subscription, asked: Any, there: Any, native: Mapping[str, Any]) -> None:
        """What was asked for by name has to be there; what was not is taken as it is."""
        explicit = self._settings.model_fields_set | native.keys()
        pairs: dict[str, tuple[object, object]] = {"topic": (asked.topic, there.topic)}
        fields = {
            "ack_deadline": "ack_deadline_seconds",
            "ordering": "enable_message_ordering",
            "exactly_once": "enable_exactly_once_delivery",
            "filter": "filter",
        }
        for name, field in fields.items():
            if name in explicit:
                pairs[name] = getattr(asked, field), getattr(there, field)
        if "retention" in explicit:
            pairs["retention"] = asked.message_retention_duration.seconds, there.message_retention_duration.seconds
        if subscription.attempts is not None:
            pairs["attempts"] = subscription.attempts, _attempts(there)
        if subscription.dead_letter is not None:
            pairs["dead_letter"] = subscription.dead_letter, _dead_letter(there)
        wanted, found = ({name: pair[side] for name, pair in pairs.items()} for side in (0, 1))
        check_same(f"subscription {there.name}", wanted, found)

    def delete(self, topic: str, subscription: str | None) -> None:
        if subscription is not None:
            self._delete_subscription(self._config.subscription(f"{topic}--{subscription}"))
            return
        path = self._config.topic(topic)
        for name in list(self._subscriptions(path)):
            if name.rpartition("/")[2].startswith(f"{topic}--"):
                self._delete_subscription(name)
        self._gone("DeleteTopic", pb.DeleteTopicRequest(topic=path), f"deleting {path}")

    def _delete_subscription(self, path: str) -> None:
        self._gone("DeleteSubscription", pb.DeleteSubscriptionRequest(subscription=path), f"deleting {path}")
        self._facts.pop(path, None)

    def _subscriptions(self, topic: str) -> Iterator[str]:
        request = pb.ListTopicSubscriptionsRequest(topic=topic, page_size=1000)
        while True:
            try:
                page = self._call("ListTopicSubscriptions", request, f"listing subscriptions of {topic}")
            except NotFound:
                return
            yield from page.subscriptions
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def depth(self, topic: str, subscription: str) -> int:
        path = self._config.subscription(f"{topic}--{subscription}")
        self._call("GetSubscription", pb.GetSubscriptionRequest(subscription=path), f"subscription {path}")
        raise NotSupported(
            "Pub/Sub does not tell how much a subscription still holds: Cloud Monitoring's num_undelivered_messages "
            "comes nearest, minutes late"
        )

    # ------------------------------------------------------------ sessions

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
        given = _native(native or {})
        path = self._config.topic(given.get("topic", topic))
        ordering = given.get("ordering", self._settings.ordering)
        link = self._open()
        try:
            self._look(link, "GetTopic", pb.GetTopicRequest(topic=path), f"topic {path}", timeout)
            return PubsubSender(link, topic, path, ordering, guarantee, outcomes, events, delivery_timeout)
        except BaseException:
            link.close()
            raise

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
        """One subscription of that name on each topic; the first topic's tells attempts and dead letters."""
        _native(subscription.native)
        if prefetch < len(topics):
            raise ConfigurationError(f"prefetch must be at least {len(topics)}, one for each topic, got {prefetch}")
        link = self._open()
        try:
            found = [self._found(link, self._path(topic, subscription), timeout) for topic in topics]
            facts = [_facts(there) if there is not None else Facts(10, False, False, False) for _, there in found]
            self._facts |= {path: fact for (path, _), fact in zip(found, facts, strict=True)}
            if guarantee is Guarantee.AT_MOST_ONCE and not all(fact.exactly_once for fact in facts):
                raise GuaranteeNotOffered(
                    f"at_most_once needs exactly-once delivery, which {found[0][0]} has not: without it an acked "
                    "message may come again. Declare the subscription with exactly_once=true, or ask for at_least_once"
                )
            traits = Traits(
                attempts=_attempts(found[0][1]),
                dead_letter=_dead_letter(found[0][1]),
                lease_seconds=float(min(fact.ack_deadline for fact in facts)),
                renewable=True,
                longest_delay=float(LONGEST),
            )
            places = [(topic, path) for topic, (path, _) in zip(topics, found, strict=True)]
            ordering = any(fact.ordering for fact in facts)
            return PubsubReceiver(link, places, traits, guarantee, settled, events, prefetch_bytes, ordering)
        except BaseException:
            link.close()
            raise

    def close(self, timeout: float) -> None:
        with self._lock:
            self._closed = True
            link, self._shared = self._shared, None
        if link is not None:
            link.close()

    # ------------------------------------------------------------ calls

    def _path(self, topic: str, subscription: Subscription) -> str:
        named = subscription.native.get("subscription")
        return self._config.subscription(str(named) if named else f"{topic}--{subscription.name}")

    def _found(self, link: Link, path: str, timeout: float) -> tuple[str, Any]:
        """The subscription, or None where it may be used and not looked at."""
        request = pb.GetSubscriptionRequest(subscription=path)
        return path, self._look(link, "GetSubscription", request, f"subscription {path}", timeout)

    def _look(self, link: Link, method: str, request: Any, doing: str, timeout: float) -> Any:
        """A publisher or subscriber by role alone may not look: whether it may do the rest shows when it does it."""
        try:
            return link.call(method, request, timeout)
        except grpc.RpcError as error:
            if error.code() is StatusCode.PERMISSION_DENIED:
                return None
            raise translated(error, doing) from None

    def _call(self, method: str, request: Any, doing: str) -> Any:
        try:
            return self._link().call(method, request, _TIMEOUT)
        except grpc.RpcError as error:
            raise translated(error, doing) from None

    def _created(self, method: str, request: Any, doing: str) -> bool:
        """False when something of that name is there already."""
        try:
            self._link().call(method, request, _TIMEOUT)
        except grpc.RpcError as error:
            if error.code() is StatusCode.ALREADY_EXISTS:
                return False
            if error.code() is StatusCode.UNKNOWN:  # what pstest and the service say to a value out of range
                raise ConfigurationError(f"{doing}: {error.details()}") from None
            raise translated(error, doing) from None
        return True

    def _gone(self, method: str, request: Any, doing: str) -> None:
        try:
            self._link().call(method, request, _TIMEOUT)
        except grpc.RpcError as error:
            if error.code() is not StatusCode.NOT_FOUND:
                raise translated(error, doing) from None

    def _link(self) -> Link:
        with self._lock:
            if self._closed:
                raise Closed("this driver is closed")
            if self._shared is None:
                self._shared = Link(self._config)
            return self._shared

    def _open(self) -> Link:
        if self._closed:
            raise Closed("this driver is closed")
        return Link(self._config)


def _facts(there: Any) -> Facts:
    return Facts(
        there.ack_deadline_seconds or 10,
        there.enable_message_ordering,
        there.enable_exactly_once_delivery,
        retention_seconds=float(there.message_retention_duration.seconds or MOST_RETENTION),
    )


def _attempts(there: Any) -> int | None:
    if there is None or not there.HasField("dead_letter_policy"):
        return None
    label = there.labels.get(_ATTEMPTS, "")
    return int(label) if label.isdigit() else there.dead_letter_policy.max_delivery_attempts or None


def _dead_letter(there: Any) -> str | None:
    """As brokerkit names it: a topic of another project keeps its whole name."""
    if there is None or not there.HasField("dead_letter_policy"):
        return None
    path = there.dead_letter_policy.dead_letter_topic
    own = there.name.partition("/subscriptions/")[0] + "/topics/"
    name: str = path.removeprefix(own)
    return name


def _check(subscription: Subscription) -> None:
    if subscription.retry is not None:
        raise ConfigurationError(
            f"retry={subscription.retry!r} is not offered by Pub/Sub, which delays a nacked message by itself: "
            "leave it out"
        )
    if subscription.attempts is not None and subscription.attempts > _MOST:
        raise ConfigurationError(f"attempts is at most {_MOST} on Pub/Sub, got {subscription.attempts}")
    if subscription.native.get("subscription") or subscription.native.get("topic"):
        raise ConfigurationError(
            "a topic or subscription that is attached is not declared: open a consumer with native="
        )


def _native(given: Mapping[str, Any]) -> Mapping[str, Any]:
    return checked(Native, given, "native= of pubsub").model_dump(exclude_none=True)
