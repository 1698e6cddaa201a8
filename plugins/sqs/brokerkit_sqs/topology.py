"""Topics and subscriptions as queues, and as an SNS topic before them where there are several.

A subscription is the queue `topic--subscription`. A topic with one subscription is that queue: its producers send
straight to it. A topic declared with several, or under `fan_out=sns`, is an SNS topic that hands each message to every
queue, raw; its queues are told by the statement of their policy that lets SNS in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brokerkit.declared import check_same
from brokerkit.driver import Subscription
from brokerkit.errors import ConfigurationError, ConnectionLost, NotFound, NotSupported
from brokerkit.plugins import checked
from brokerkit_sqs.clients import Clients
from brokerkit_sqs.errors import EXISTS, FAILURES, MISSING, code_of, translated
from brokerkit_sqs.settings import Made, Native, SqsSettings

SQS_LIMIT = 1_048_576
SNS_LIMIT = 262_144
DEAD = "dead"
"""The subscription of a dead-letter topic."""
RETENTION = 1_209_600
"""Seconds, SQS's most: a dead letter's age counts from its first send, so that its queue must keep longest."""
_SENTENCE = "brokerkit-fan-out"
_LISTED_WITHIN = 60.0
_FIFO = (
    "is a FIFO queue or topic, which deduplicates and blocks by group: brokerkit's sqs plugin drives standard ones only"
)
_NO_SNS = (
    "this endpoint has no SNS, and so no fan-out: a topic has one subscription here; declare a topic for each consumer "
    "group and send to each, or name an SNS endpoint with sns_endpoint_url="
)


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as a consumer knows it."""

    topic: str
    name: str
    url: str
    attempts: int | None = None
    dead_letter: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where a sender's messages go: a queue's URL, or an SNS topic's ARN."""

    name: str
    target: str
    fan_out: bool
    limit: int

    @property
    def batch_limit(self) -> int:
        return SNS_LIMIT if self.fan_out else SQS_LIMIT


class Topology:
    """Looks up, creates and removes. Every call may block for some round trips; safe from several threads."""

    def __init__(self, clients: Clients, settings: SqsSettings) -> None:
        self._clients = clients
        self._settings = settings
        self._foreign_dead: dict[str, str] = {}
        """Dead-letter queues that are not named as brokerkit names them: name to URL."""

    # ------------------------------------------------------------ looking up

    def route(self, topic: str, subscription: str | None, native: Mapping[str, Any] | None) -> Route:
        """Where producers of `topic` send. Raises NotFound."""
        given = _native(native or {})
        if arn := given.topic_arn:
            not_fifo(arn)
            return Route(arn.rpartition(":")[2], arn, True, SNS_LIMIT)
        if (url := self._attached(given)) is not None:
            return self._straight(name_of(url), url)
        if subscription is not None:
            name = f"{topic}--{subscription}"
            return self._straight(name, self._url(name))
        if topic in self._foreign_dead:
            return self._straight(topic, self._foreign_dead[topic])
        queues = self.queues_of(topic)
        if len(queues) == 1:
            attributes = self.attributes(queues[0])
            if not _lets_in(attributes):
                return Route(name_of(queues[0]), queues[0], False, _limit(attributes))
        arn = self._find_sns(topic)
        if arn is None and not queues:
            raise NotFound(f"topic {topic!r} has no subscription: declare it with one")
        if arn is None:
            raise ConfigurationError(
                f"topic {topic!r} has {len(queues)} queues and no SNS topic before them: declare its subscriptions in "
                "one call"
            )
        return Route(topic, arn, True, SNS_LIMIT)

    def queue(self, topic: str, subscription: Subscription) -> Queue:
        """A subscription's queue with what its redrive policy says. Raises NotFound."""
        url = self._attached(_native(subscription.native))
        if url is None:
            url = self._url(f"{topic}--{subscription.name}")
        attempts, arn = _redrive(self.attributes(url))
        dead = None
        if arn is not None:
            name = arn.rpartition(":")[2]
            dead, _, rest = name.partition("--")
            if rest != DEAD:
                dead = name
                self._foreign_dead[name] = self._url(name)
        return Queue(topic, name_of(url), url, attempts, dead)

    def queues_of(self, topic: str) -> list[str]:
        """URLs of the queues of a topic's subscriptions."""
        urls: list[str] = []
        more: dict[str, Any] = {}
        while True:
            try:
                answer = self._clients.calls.list_queues(QueueNamePrefix=f"{topic}--", MaxResults=1000, **more)
            except FAILURES as error:
                raise translated(error, f"looking up the queues of topic {topic!r}") from None
            urls += answer.get("QueueUrls") or ()
            if not answer.get("NextToken"):
                return [url for url in urls if not name_of(url).endswith(".fifo")]
            more = {"NextToken": answer["NextToken"]}

    def attributes(self, url: str) -> Mapping[str, str]:
        try:
            answer = self._clients.calls.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
        except FAILURES as error:
            raise translated(error, f"reading the attributes of queue {name_of(url)!r}") from None
        found: Mapping[str, str] = answer.get("Attributes") or {}
        if found.get("FifoQueue") == "true":
            raise NotSupported(f"{name_of(url)!r} {_FIFO}")
        return found

    # ------------------------------------------------------------ declaring

    def declare(self, topic: str, subscriptions: Sequence[Subscription], native: Mapping[str, Any]) -> None:
        attributes = checked(Made, native, "native= of sqs").attributes
        there = {name_of(url).partition("--")[2]: url for url in self.queues_of(topic)}
        wanted = {subscription.name for subscription in subscriptions} | there.keys()
        fan_out = self._fans_out(topic, there, wanted, subscriptions)
        arn = self._make_sns(topic) if fan_out else None
        made: list[str] = []
        for subscription in subscriptions:
            made += self._declare(topic, subscription, attributes, there.get(subscription.name), arn)
        self._await_listed(made)

    def delete(self, topic: str, subscription: str | None) -> None:
        urls = self.queues_of(topic)
        if subscription is not None:
            urls = [url for url in urls if name_of(url) == f"{topic}--{subscription}"]
        through = bool(urls) and any(_lets_in(self.attributes(url)) for url in urls)
        arn = self._find_sns(topic) if through or self._settings.fan_out == "sns" else None
        for url in urls:
            if arn is not None and subscription is not None:
                self._unsubscribe(arn, url)
            try:
                self._clients.calls.delete_queue(QueueUrl=url)
            except FAILURES as error:
                if code_of(error) not in MISSING:
                    raise translated(error, f"deleting queue {name_of(url)!r}") from None
        if arn is not None and subscription is None:
            self._sns("deleting", topic, "delete_topic", TopicArn=arn)

    def _fans_out(
        self, topic: str, there: Mapping[str, str], wanted: set[str], subscriptions: Sequence[Subscription]
    ) -> bool:
        if self._settings.fan_out == "sns":
            return True
        if len(wanted) < 2:
            return bool(there) and _lets_in(self.attributes(*there.values()))
        if there and not all(_lets_in(self.attributes(url)) for url in there.values()):
            self._find_sns(topic, need=True)
            raise ConfigurationError(
                f"topic {topic!r} was declared with one subscription, {', '.join(there)}, and its producers send "
                "straight to that queue: declare all subscriptions in one call, or connect with fan_out=sns, before "
                "the first"
            )
        return True

    def _declare(
        self,
        topic: str,
        subscription: Subscription,
        attributes: Mapping[str, Any],
        there: str | None,
        arn: str | None,
    ) -> list[str]:
        """Creates what is missing; returns the URLs of what was made."""
        name = f"{topic}--{subscription.name}"
        if subscription.start == "earliest" and there is None:
            raise NotSupported(
                "a queue holds what is sent after it was declared: start='earliest' is not there, declare the "
                "subscription before the first send"
            )
        if subscription.retry == "block":
            raise ConfigurationError("retry='block' is not offered by sqs, which lets others pass: leave it out")
        wanted = {str(key): str(value) for key, value in attributes.items()}
        made: list[str] = []
        if subscription.dead_letter is not None:
            dead = f"{subscription.dead_letter}--{DEAD}"
            dead_url, fresh = self._create(dead, {"MessageRetentionPeriod": str(RETENTION)}, compare=False)
            made += [dead_url] if fresh else []
            if subscription.attempts is not None:
                target = self.attributes(dead_url)["QueueArn"]
                policy = {"deadLetterTargetArn": target, "maxReceiveCount": subscription.attempts}
                wanted["RedrivePolicy"] = json.dumps(policy)
        own: dict[str, str] = {}
        if there is None:
            own["VisibilityTimeout"] = str(self._settings.lease_seconds)
        url, fresh = self._create(name, {**own, **wanted}, compare=True)
        made += [url] if fresh else []
        if arn is not None:
            self._subscribe(arn, url)
        return made

    def _create(self, name: str, wanted: Mapping[str, str], *, compare: bool) -> tuple[str, bool]:
        """The queue's URL, and whether it was made now. Raises ConfigurationError that names a difference."""
        try:
            url = self._url(name)
        except NotFound:
            try:
                made = self._clients.calls.create_queue(QueueName=name, Attributes=dict(wanted))
                return str(made["QueueUrl"]), True
            except FAILURES as error:
                if code_of(error) not in EXISTS:
                    raise translated(error, f"creating queue {name!r}") from None
                url = self._url(name)  # somebody else was faster
        there = self.attributes(url)
        if compare:
            # A visibility timeout that is not told is none of ours to doubt.
            asked = {key: value for key, value in wanted.items() if key != "VisibilityTimeout" or there.get(key)}
            check_same(f"queue {name!r}", _comparable(asked), _comparable(there))
        return url, False

    def _await_listed(self, urls: Sequence[str]) -> None:
        """Producers of other processes find queues in a list, which on Amazon's side comes late."""
        deadline = time.monotonic() + _LISTED_WITHIN
        for url in urls:
            topic = name_of(url).partition("--")[0]
            while name_of(url) not in {name_of(some) for some in self.queues_of(topic)}:
                if time.monotonic() > deadline:
                    raise ConnectionLost(
                        f"queue {name_of(url)!r} was made and is not listed after {_LISTED_WITHIN:g} s"
                    )
                time.sleep(0.5)

    def _url(self, name: str) -> str:
        not_fifo(name)
        try:
            return str(self._clients.calls.get_queue_url(QueueName=name)["QueueUrl"])
        except FAILURES as error:
            raise translated(error, f"looking up queue {name!r}") from None

    def _attached(self, native: Native) -> str | None:
        if native.queue_url is not None:
            not_fifo(native.queue_url)
            return native.queue_url
        return self._url(native.queue) if native.queue is not None else None

    def _straight(self, name: str, url: str) -> Route:
        return Route(name, url, False, _limit(self.attributes(url)))

    # ------------------------------------------------------------ SNS

    def _find_sns(self, topic: str, *, need: bool = False) -> str | None:
        """The ARN of a topic's SNS topic. With `need`, an endpoint without SNS raises NotSupported."""
        more: dict[str, str] = {}
        while True:
            try:
                answer = self._clients.sns.list_topics(**more)
            except FAILURES as error:
                if no_sns(error):
                    if need:
                        raise NotSupported(_NO_SNS) from None
                    return None
                raise translated(error, f"looking up SNS topic {topic!r}") from None
            for found in answer.get("Topics") or ():
                if found["TopicArn"].rpartition(":")[2] == topic:
                    return str(found["TopicArn"])
            if not answer.get("NextToken"):
                return None
            more = {"NextToken": answer["NextToken"]}

    def _make_sns(self, topic: str) -> str:
        return str(self._sns("creating", topic, "create_topic", Name=topic)["TopicArn"])

    def _subscribe(self, arn: str, url: str) -> None:
        attributes = self.attributes(url)
        if not _lets_in(attributes):
            statement = {
                "Sid": _SENTENCE,
                "Effect": "Allow",
                "Principal": {"Service": "sns.amazonaws.com"},
                "Action": "sqs:SendMessage",
                "Resource": attributes["QueueArn"],
                "Condition": {"ArnEquals": {"aws:SourceArn": arn}},
            }
            policy = _with_statement(attributes.get("Policy"), statement)
            try:
                self._clients.calls.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy})
            except FAILURES as error:
                raise translated(error, f"letting SNS into queue {name_of(url)!r}") from None
        topic = arn.rpartition(":")[2]
        self._sns(
            "subscribing to",
            topic,
            "subscribe",
            TopicArn=arn,
            Protocol="sqs",
            Endpoint=attributes["QueueArn"],
            Attributes={"RawMessageDelivery": "true"},
            ReturnSubscriptionArn=True,
        )

    def _unsubscribe(self, arn: str, url: str) -> None:
        topic, queue = arn.rpartition(":")[2], self.attributes(url)["QueueArn"]
        more: dict[str, str] = {}
        while True:
            answer = self._sns("reading", topic, "list_subscriptions_by_topic", TopicArn=arn, **more)
            for found in answer.get("Subscriptions") or ():
                if found["Endpoint"] == queue:
                    self._sns("unsubscribing from", topic, "unsubscribe", SubscriptionArn=found["SubscriptionArn"])
            if not answer.get("NextToken"):
                return
            more = {"NextToken": answer["NextToken"]}

    def _sns(self, doing: str, topic: str, call: str, **arguments: Any) -> Any:
        try:
            return getattr(self._clients.sns, call)(**arguments)
        except FAILURES as error:
            if no_sns(error):
                raise NotSupported(_NO_SNS) from None
            raise translated(error, f"{doing} SNS topic {topic!r}") from None


def attaches(native: Mapping[str, Any] | None) -> bool:
    """Whether native settings name what exists already."""
    return bool(native) and any(name in (native or {}) for name in ("queue_url", "queue", "topic_arn"))


def _native(given: Mapping[str, Any]) -> Native:
    return checked(Native, given, "native= of sqs")


def not_fifo(name: str) -> None:
    if name.endswith(".fifo"):
        raise NotSupported(f"{name.rpartition('/')[2]!r} {_FIFO}")


def name_of(url: str) -> str:
    """A queue's name, the end of its URL."""
    return url.rstrip("/").rpartition("/")[2]


def no_sns(error: Exception) -> bool:
    """Whether an endpoint that speaks SQS does not know SNS's calls."""
    return code_of(error) in ("InvalidAction", "UnknownOperationException", "UnknownOperation", "404")


def _lets_in(attributes: Mapping[str, str]) -> bool:
    return _SENTENCE in (attributes.get("Policy") or "")


def _with_statement(policy: str | None, statement: Mapping[str, Any]) -> str:
    """The queue's policy, if it has one, with one statement more."""
    there = json.loads(policy) if policy else {"Version": "2012-10-17", "Statement": []}
    statements = there.get("Statement") or []
    there["Statement"] = [*(statements if isinstance(statements, list) else [statements]), statement]
    return json.dumps(there)


def _limit(attributes: Mapping[str, str]) -> int:
    text = attributes.get("MaximumMessageSize") or ""
    return min(int(text), SQS_LIMIT) if text.isdigit() else SQS_LIMIT


def _redrive(attributes: Mapping[str, str]) -> tuple[int | None, str | None]:
    try:
        policy = json.loads(attributes.get("RedrivePolicy") or "{}")
        return int(policy["maxReceiveCount"]), str(policy["deadLetterTargetArn"])
    except (ValueError, KeyError, TypeError):
        return None, None


def _comparable(attributes: Mapping[str, str]) -> Mapping[str, object]:
    """With the redrive policy's parts instead of its text, which anybody may have written."""
    found: dict[str, object] = {name: value for name, value in attributes.items() if name != "RedrivePolicy"}
    if attributes.get("RedrivePolicy"):
        found["attempts"], arn = _redrive(attributes)
        found["dead_letter"] = arn and arn.rpartition(":")[2]
    return found
