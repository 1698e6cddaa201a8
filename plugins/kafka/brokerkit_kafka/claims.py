"""What may be lost and doubled, from acks, idempotence, replicas and the guarantees asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from brokerkit.guarantees import Claim, Claims, FailurePoint, Guarantee, Likelihood, Properties

if TYPE_CHECKING:
    from brokerkit_kafka.settings import Config

NEVER, POSSIBLE, EXPECTED = Likelihood.NEVER, Likelihood.POSSIBLE, Likelihood.EXPECTED
_AMO = Guarantee.AT_MOST_ONCE


@dataclass(frozen=True, slots=True)
class Facts:
    """Of a topic as it is: copies of each partition, and how many must have a message before it is confirmed."""

    replication: int
    min_insync: int


def claims(config: Config, facts: Facts, max_body: int, producer: Guarantee, consumer: Guarantee) -> Claims:
    points: dict[str, Claim] = dict(_producer_points(config, facts, producer))
    for point, claim in _consumer_points(consumer).items():
        points[point] = _both(points.get(point, Claim()), claim)
    if facts.replication < 2:
        points.pop(FailurePoint.LEADER_KILLED, None)
    return Claims(points, _properties(config, facts, max_body))


def _producer_points(config: Config, facts: Facts, producer: Guarantee) -> Mapping[str, Claim]:
    if producer is _AMO:
        lossy = Claim(loss=POSSIBLE, condition="acks=0: nothing tells whether a message was stored")
        return {
            FailurePoint.CONFIRM_LOST: lossy,
            FailurePoint.SEND_FAILS: replace(lossy, loss=EXPECTED),
            FailurePoint.PRODUCER_KILLED: lossy,
            FailurePoint.BROKER_KILLED: lossy,
            FailurePoint.BROKER_PAUSED: lossy,
            FailurePoint.LEADER_KILLED: lossy,
        }
    again = config.idempotent()
    doubled = Claim(
        duplicate=NEVER if again else POSSIBLE,
        condition="the idempotent producer's own retries are recognised, within its session"
        if again
        else "enable.idempotence=false: a retried batch is stored again",
        source="measured by the conformance suite",
    )
    outage = doubled
    if again and producer is not Guarantee.EXACTLY_ONCE:
        ended = "an outage may end the session of the idempotent producer, and what was under way is sent in another"
        outage = replace(doubled, duplicate=POSSIBLE, condition=ended)
    return {
        FailurePoint.CONFIRM_LOST: replace(doubled, duplicate=NEVER if again else EXPECTED),
        FailurePoint.SEND_FAILS: doubled,
        FailurePoint.PRODUCER_KILLED: doubled,
        FailurePoint.BROKER_KILLED: outage,
        FailurePoint.BROKER_PAUSED: outage,
        FailurePoint.LEADER_KILLED: _both(outage, _leader(config, facts)),
    }


def _leader(config: Config, facts: Facts) -> Claim:
    if config.acks() != "all":
        early = f"acks={config.acks()}: confirmed before any follower has the message"
        return Claim(loss=EXPECTED, condition=early, source="measured by the conformance suite")
    if facts.min_insync < 2:
        return Claim(loss=POSSIBLE, condition="min.insync.replicas=1: a confirm may stand for one copy alone")
    return Claim(
        condition=f"acks=all, {facts.replication} replicas, min.insync.replicas={facts.min_insync}, no unclean election"
    )


def _transaction_points() -> Mapping[str, Claim]:
    """From topic to topic within one cluster, read at read_committed. Nothing else is covered."""
    once = Claim(condition="from Kafka to the same Kafka, read at read_committed", source="measured by the suite")
    points = [point for point in FailurePoint if point is not FailurePoint.LEADER_KILLED]
    outside = "what a handler does outside the transaction is done again when its messages come again"
    return {
        **dict.fromkeys(points, once),
        FailurePoint.EXTERNAL_EFFECT_DOUBLES: Claim(duplicate=EXPECTED, condition=outside, source=once.source),
    }


def _consumer_points(consumer: Guarantee) -> Mapping[str, Claim]:
    if consumer is Guarantee.EXACTLY_ONCE:
        return _transaction_points()
    if consumer is _AMO:
        lossy = Claim(loss=POSSIBLE, condition="committed at hand-over: what a killed member had in hand is gone")
        return {
            FailurePoint.NONE: Claim(),
            FailurePoint.BROKER_KILLED: lossy,
            FailurePoint.BROKER_PAUSED: lossy,
            FailurePoint.LEADER_KILLED: lossy,
            FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING: replace(lossy, loss=EXPECTED),
            FailurePoint.CONSUMER_KILLED_BEFORE_ACK: lossy,
            FailurePoint.ACK_LOST_KEPT_AWAY: lossy,
            FailurePoint.ACK_LOST_BACK_AT_ONCE: lossy,
            FailurePoint.CONSUMER_FROZEN: lossy,
            FailurePoint.CONSUMERS_COME_AND_GO: lossy,
            FailurePoint.CLEAN_SHUTDOWN: Claim(),
        }
    again = Claim(
        duplicate=POSSIBLE,
        condition="what was handled and not yet committed is handed out again",
        source="measured by the conformance suite",
    )
    expected = replace(again, duplicate=EXPECTED)
    return {
        FailurePoint.NONE: Claim(),
        FailurePoint.BROKER_KILLED: again,
        FailurePoint.BROKER_PAUSED: again,
        FailurePoint.LEADER_KILLED: again,
        FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING: again,
        FailurePoint.CONSUMER_KILLED_BEFORE_ACK: expected,
        FailurePoint.ACK_LOST_KEPT_AWAY: expected,
        FailurePoint.ACK_LOST_BACK_AT_ONCE: replace(again, condition="back within its session, it commits again"),
        FailurePoint.CONSUMER_FROZEN: expected,
        FailurePoint.CONSUMERS_COME_AND_GO: expected,
        FailurePoint.CLEAN_SHUTDOWN: Claim(),
        FailurePoint.POISON: Claim(duplicate=POSSIBLE, condition="a dead letter may be sent twice"),
    }


def _both(one: Claim, other: Claim) -> Claim:
    """The weaker of two claims in each respect."""
    order = [NEVER, POSSIBLE, EXPECTED]
    conditions = [text for text in (one.condition, other.condition) if text]
    return Claim(
        loss=max(one.loss, other.loss, key=order.index),
        duplicate=max(one.duplicate, other.duplicate, key=order.index),
        reorder=max(one.reorder, other.reorder, key=order.index),
        condition="; ".join(dict.fromkeys(conditions)),
        source=one.source or other.source,
    )


def _properties(config: Config, facts: Facts, max_body: int) -> Properties:
    settings = config.settings
    notes = []
    if facts.replication < 3:
        notes.append(f"topics have {facts.replication} replica(s): they do not survive the loss of a disk")
    if config.acks() != "all":
        notes.append(f"acks={config.acks()}: a confirmed message may be lost with its leader")
    if not config.idempotent():
        notes.append("enable.idempotence=false: retries may double and reorder")
    if facts.replication < 3:
        notes.append(
            f"one node that is killed with transactions open and comes back near {settings.transaction_timeout:g} s "
            "later (transaction_timeout) may leave them hanging: readers wait there until an operator ends them"
        )
    if settings.group_protocol == "consumer":
        notes.append("the session timeout is the broker's (group.consumer.session.timeout.ms)")
    return Properties(
        order="per_partition" if config.idempotent() else "none",
        lease="polling",
        lease_seconds=settings.session_timeout if settings.group_protocol == "classic" else None,
        redelivery_seconds=(settings.session_timeout if settings.group_protocol == "classic" else 45.0) + 2.0,
        nack="blocks",
        poison_blocks_others=True,
        dedup="producer_session" if config.idempotent() else "none",
        refuses_unroutable=False,
        max_body_bytes=max_body,
        counts_attempts=False,
        transaction_seconds=settings.transaction_timeout,
        transaction_setting="transaction_timeout",
        uncommitted={"client.isolation.level": "read_uncommitted"},
        durable="replicated" if facts.replication >= 3 and facts.min_insync >= 2 else "broker_kill",
        notes=(
            "a message is stored once it is in the page cache of its replicas: no fsync",
            "attempts are counted while a member lives; after its death they begin again",
            'retry="topic" gives order up and lets others pass; "block" (the default) keeps it',
            *notes,
        ),
    )
