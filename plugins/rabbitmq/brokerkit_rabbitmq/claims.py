"""What RabbitMQ as configured may lose, double and reorder, per failure point.

A point's claim is the weakest of what holds always, what each end asked for, and what the queue is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from brokerkit.guarantees import Claim, Claims, FailurePoint, Guarantee, Likelihood, Properties, together
from brokerkit_rabbitmq.topology import takes_timeout

NEVER, POSSIBLE, EXPECTED = Likelihood.NEVER, Likelihood.POSSIBLE, Likelihood.EXPECTED
_MOST, _LEAST = Guarantee.AT_MOST_ONCE, Guarantee.AT_LEAST_ONCE
_LOST, _AGAIN = Claim(loss=POSSIBLE), Claim(duplicate=POSSIBLE)
_SURELY_LOST, _SURELY_AGAIN = Claim(loss=EXPECTED), Claim(duplicate=EXPECTED)

_CONFIRMS = "rabbitmq.com/docs/confirms"
_QUORUM = "rabbitmq.com/docs/quorum-queues"
_CONSUMERS = "rabbitmq.com/docs/consumers"
_TIMEOUT = "rabbitmq.com/docs/consumers#acknowledgement-timeout"
_MEASURED = "brokerkit conformance, RabbitMQ 3.10, 4.0 and 4.3"

_NO_ANSWER = Claim(condition="basic.ack has no answer", source=_CONSUMERS)
_ALWAYS: Mapping[FailurePoint, Claim] = {
    FailurePoint.NONE: Claim(
        condition="consumers of one queue compete: order holds for one of them", source=_CONSUMERS
    ),
    FailurePoint.CONFIRM_LOST: Claim(
        condition="sent again with the same id; the broker has no dedup", source=_CONFIRMS
    ),
    FailurePoint.SEND_FAILS: Claim(source=_CONFIRMS),
    FailurePoint.PRODUCER_KILLED: Claim(source=_CONFIRMS),
    FailurePoint.BROKER_PAUSED: Claim(source=_MEASURED),
    FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING: Claim(source=_CONSUMERS),
    FailurePoint.CONSUMER_KILLED_BEFORE_ACK: Claim(source=_CONSUMERS),
    FailurePoint.ACK_LOST_KEPT_AWAY: _NO_ANSWER,
    FailurePoint.ACK_LOST_BACK_AT_ONCE: _NO_ANSWER,
    FailurePoint.CONSUMER_FROZEN: Claim(source=_CONSUMERS),
    FailurePoint.LEASE_EXPIRED: Claim(
        condition="a handler outlasts the consumer timeout, which cannot be renewed; its ack ends lost",
        source=_TIMEOUT,
    ),
    FailurePoint.LEASE_KEPT: Claim(condition="handlers end within the consumer timeout", source=_TIMEOUT),
    FailurePoint.BUFFERED_LEASE: Claim(
        condition="handlers end within the consumer timeout, which runs for what is prefetched too", source=_TIMEOUT
    ),
    FailurePoint.LEASE_RELEASED: Claim(source=_CONSUMERS),
    FailurePoint.CONSUMERS_COME_AND_GO: Claim(source=_CONSUMERS),
    FailurePoint.CLEAN_SHUTDOWN: Claim(source=_MEASURED),
    FailurePoint.POISON: Claim(
        condition="the hop to the dead letters is a confirmed send, then the ack", source=_QUORUM
    ),
}

_SENT: Mapping[Guarantee, Mapping[FailurePoint, Claim]] = {
    _MOST: {
        FailurePoint.SEND_FAILS: _SURELY_LOST,
        FailurePoint.PRODUCER_KILLED: _LOST,
        FailurePoint.BROKER_KILLED: _LOST,
        FailurePoint.BROKER_PAUSED: _LOST,
        FailurePoint.LEADER_KILLED: _LOST,
        FailurePoint.CLEAN_SHUTDOWN: Claim(
            POSSIBLE,
            condition="publishes without confirms that a quorum queue's channel still holds go with it (seen on 3.10)",
        ),
    },
    _LEAST: {
        FailurePoint.CONFIRM_LOST: _SURELY_AGAIN,
        FailurePoint.SEND_FAILS: _AGAIN,
        FailurePoint.BROKER_PAUSED: _AGAIN,
    },
}
"""What a producer's guarantee costs: a cut loses what waits for no confirm, and a retry doubles."""

_TAKEN: Mapping[Guarantee, Mapping[FailurePoint, Claim]] = {
    _MOST: {
        FailurePoint.CONFIRM_LOST: _LOST,
        FailurePoint.SEND_FAILS: _LOST,
        FailurePoint.BROKER_KILLED: _LOST,
        FailurePoint.BROKER_PAUSED: _LOST,
        FailurePoint.LEADER_KILLED: _LOST,
        FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING: _SURELY_LOST,
        FailurePoint.CONSUMER_KILLED_BEFORE_ACK: _LOST,
        FailurePoint.ACK_LOST_KEPT_AWAY: _LOST,
        FailurePoint.ACK_LOST_BACK_AT_ONCE: _LOST,
        FailurePoint.CONSUMER_FROZEN: _LOST,
        FailurePoint.LEASE_RELEASED: _LOST,
        FailurePoint.CONSUMERS_COME_AND_GO: _LOST,
        FailurePoint.CLEAN_SHUTDOWN: Claim(
            POSSIBLE, condition="what goes back unstarted is marked redelivered, and at most once drops that"
        ),
        FailurePoint.POISON: _LOST,
    },
    _LEAST: {
        FailurePoint.BROKER_PAUSED: _AGAIN,
        FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING: _AGAIN,
        FailurePoint.CONSUMER_KILLED_BEFORE_ACK: _SURELY_AGAIN,
        FailurePoint.ACK_LOST_KEPT_AWAY: _SURELY_AGAIN,
        FailurePoint.ACK_LOST_BACK_AT_ONCE: _SURELY_AGAIN,
        FailurePoint.CONSUMER_FROZEN: _SURELY_AGAIN,
        FailurePoint.LEASE_EXPIRED: _AGAIN,
        FailurePoint.LEASE_RELEASED: _AGAIN,
        FailurePoint.CONSUMERS_COME_AND_GO: _AGAIN,
        FailurePoint.POISON: _AGAIN,
    },
}
"""What a consumer's guarantee costs: at most once drops what is marked redelivered, at least once sees it again."""


@dataclass(frozen=True)
class Found:
    """What the claims rest on."""

    queue: str
    """`quorum` or `classic` as declared; `unknown` for an attached one, whose type AMQP does not tell."""
    persistent: bool
    heartbeat: int
    max_body: int
    version: tuple[int, ...] = ()
    attached: bool = False
    hasty: bool = False
    """A quorum queue is used before its registration is on the disk (`new_queue_wait`)."""


def claims(found: Found, producer: Guarantee, consumer: Guarantee) -> Claims:
    points = together(
        {**_ALWAYS, **_queue(found)}, _TAKEN.get(consumer, _TAKEN[_LEAST]), _SENT.get(producer, _SENT[_LEAST])
    )
    return Claims(points, _properties(found))


def _queue(found: Found) -> Mapping[FailurePoint, Claim]:
    """Neither acks nor the marks of redelivery are durable at once, so at most once may see a message twice here."""
    killed = Claim(
        NEVER, POSSIBLE, condition="the node's disk survives; acks are not durable at once", source=_MEASURED
    )
    led = Claim(
        NEVER, POSSIBLE, condition="a classic queue lives on one node and waits for it to come back", source=_QUORUM
    )
    if found.queue == "quorum":
        led = replace(led, condition="a majority of the queue's members is left or comes back")
        if found.hasty:
            young = "a queue younger than a second is lost when all its nodes are killed (new_queue_wait)"
            killed = replace(killed, loss=POSSIBLE, condition=young)
    elif found.queue == "unknown":
        unasked = "an attached queue's type and durability cannot be asked for"
        killed = Claim(POSSIBLE, POSSIBLE, condition=unasked, source=_QUORUM)
        led = replace(led, loss=POSSIBLE)
    elif not found.persistent:
        transient = "transient messages on a classic queue die with the node"
        killed = Claim(EXPECTED, POSSIBLE, condition=transient, source=_MEASURED)
        led = replace(killed, source=_QUORUM)
    return {FailurePoint.BROKER_KILLED: killed, FailurePoint.LEADER_KILLED: led}


def _properties(found: Found) -> Properties:
    notes = []
    if found.queue == "classic":
        notes.append("Classic queues live on one node; they count no attempts across a lost connection.")
        if not found.persistent:
            notes.append("Transient messages on classic queues are lost when the node dies.")
    if found.attached:
        notes.append(
            "An attached queue's type, durability and limits cannot be asked for over AMQP: nothing is assumed."
        )
    if found.version >= (4, 3) and found.queue == "quorum":
        notes.append(
            "The end of a consumer timeout may be overlooked until something else happens to the queue (a message, an "
            "ack): on an idle one a handler that hangs may keep its message. Seen on 4.3.6 in 97 of 300 queues."
        )
    if found.version and found.version < (4, 3):
        notes.append("Before 4.3 giving back unstarted deliveries counts as an attempt.")
    if found.version and found.version < (3, 12):
        notes.append("Before 3.12 the consumer timeout is the broker's alone; handling_seconds changes nothing.")
    return Properties(
        order="single_consumer",
        lease="fixed",
        lease_seconds=1800.0,
        handling_sets_lease=not found.attached and takes_timeout(found.queue, found.version),
        redelivery_seconds=2.0 * found.heartbeat + 5.0,
        nack="delayed",
        dead_letters=True,
        poison_blocks_others=False,
        answers_acks=False,
        dedup="none",
        refuses_unroutable=True,
        max_body_bytes=found.max_body,
        counts_attempts=found.queue == "quorum",
        durable={"quorum": "replicated", "unknown": "none"}.get(
            found.queue, "broker_kill" if found.persistent else "none"
        ),
        notes=tuple(notes),
    )
