"""What RabbitMQ as configured may lose, double and reorder, per failure point."""

from __future__ import annotations

from dataclasses import dataclass

from brokerkit.driver import Traits
from brokerkit.guarantees import Claim, Claims, FailurePoint, Guarantee, Likelihood, Properties

NEVER, POSSIBLE, EXPECTED = Likelihood.NEVER, Likelihood.POSSIBLE, Likelihood.EXPECTED

_CONFIRMS = "rabbitmq.com/docs/confirms"
_QUORUM = "rabbitmq.com/docs/quorum-queues"
_CONSUMERS = "rabbitmq.com/docs/consumers"
_MEASURED = "brokerkit conformance, RabbitMQ 3.10, 4.0 and 4.3"


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


def claims(found: Found, producer: Guarantee, consumer: Guarantee) -> Claims:
    once = consumer is Guarantee.AT_MOST_ONCE
    blind = producer is Guarantee.AT_MOST_ONCE
    # What a cut costs a producer that waits for no confirm, and a consumer that drops what is marked redelivered.
    cut = POSSIBLE if blind or once else NEVER
    dropped = POSSIBLE if once else NEVER
    again = NEVER if once else EXPECTED
    maybe_again = NEVER if once else POSSIBLE
    resent = NEVER if blind else POSSIBLE
    kill = _broker_killed(found, cut)
    points = {
        FailurePoint.NONE: Claim(
            condition="consumers of one queue compete: order holds for one of them", source=_CONSUMERS
        ),
        FailurePoint.CONFIRM_LOST: Claim(
            dropped,
            NEVER if blind else EXPECTED,
            condition="sent again with the same id; the broker has no dedup",
            source=_CONFIRMS,
        ),
        FailurePoint.SEND_FAILS: Claim(EXPECTED if blind else dropped, resent, source=_CONFIRMS),
        FailurePoint.PRODUCER_KILLED: Claim(POSSIBLE if blind else NEVER, NEVER, source=_CONFIRMS),
        FailurePoint.BROKER_KILLED: kill,
        FailurePoint.BROKER_PAUSED: Claim(cut, resent if once else POSSIBLE, source=_MEASURED),
        FailurePoint.LEADER_KILLED: _leader_killed(found, cut),
        FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING: Claim(
            EXPECTED if once else NEVER, maybe_again, source=_CONSUMERS
        ),
        FailurePoint.CONSUMER_KILLED_BEFORE_ACK: Claim(dropped, again, source=_CONSUMERS),
        FailurePoint.ACK_LOST_KEPT_AWAY: Claim(dropped, again, condition="basic.ack has no answer", source=_CONSUMERS),
        FailurePoint.ACK_LOST_BACK_AT_ONCE: Claim(
            dropped, again, condition="basic.ack has no answer", source=_CONSUMERS
        ),
        FailurePoint.CONSUMER_FROZEN: Claim(dropped, again, source=_CONSUMERS),
        FailurePoint.CONSUMERS_COME_AND_GO: Claim(dropped, maybe_again, source=_CONSUMERS),
        FailurePoint.CLEAN_SHUTDOWN: Claim(
            cut,
            NEVER,
            condition=_clean_shutdown(once, blind),
            source=_MEASURED,
        ),
        FailurePoint.POISON: Claim(
            dropped,
            maybe_again,
            condition="the hop to the dead letters is a confirmed send, then the ack",
            source=_QUORUM,
        ),
    }
    return Claims({str(point): claim for point, claim in points.items()}, _properties(found))


def _broker_killed(found: Found, cut: Likelihood) -> Claim:
    # Neither acks nor the marks of redelivery are durable at once, so at most once may see a message twice here.
    if found.queue == "classic" and not found.persistent:
        return Claim(
            EXPECTED, POSSIBLE, condition="transient messages on a classic queue die with the node", source=_MEASURED
        )
    if found.queue == "unknown":
        return Claim(
            POSSIBLE, POSSIBLE, condition="an attached queue's type and durability cannot be asked for", source=_QUORUM
        )
    return Claim(cut, POSSIBLE, condition="the node's disk survives; acks are not durable at once", source=_MEASURED)


def _leader_killed(found: Found, cut: Likelihood) -> Claim:
    if found.queue == "quorum":
        return Claim(cut, POSSIBLE, condition="a majority of the queue's members is left or comes back", source=_QUORUM)
    if found.queue == "classic" and not found.persistent:
        return Claim(
            EXPECTED, POSSIBLE, condition="transient messages on a classic queue die with the node", source=_QUORUM
        )
    return Claim(
        POSSIBLE if found.queue == "unknown" else cut,
        POSSIBLE,
        condition="a classic queue lives on one node and waits for it to come back",
        source=_QUORUM,
    )


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
    if found.version and found.version < (4, 3):
        notes.append("Before 4.3 giving back unstarted deliveries counts as an attempt.")
    if found.version and found.version < (3, 12):
        notes.append("Before 3.12 the consumer timeout is the broker's alone; handling_seconds changes nothing.")
    return Properties(
        order="single_consumer",
        lease="fixed",
        lease_seconds=1800.0,
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


def traits(
    kind: str, version: tuple[int, ...], attempts: int | None, dead_letter: str | None, lease: float | None
) -> Traits:
    """How a subscription of this kind behaves. Classic queues count nothing, so there the layer counts."""
    native = kind != "classic" or attempts is None
    return Traits(
        nack="native" if native else "republish",
        nack_delay="republish",
        dead_letters="layer",
        attempts=attempts,
        dead_letter=dead_letter,
        lease_seconds=lease,
        renewable=False,
        answers_acks=False,
    )


def _clean_shutdown(once: bool, blind: bool) -> str:
    reasons = []
    if once:
        reasons.append("what goes back unstarted is marked redelivered, and at most once drops that")
    if blind:
        reasons.append("publishes without confirms that a quorum queue's channel still holds go with it (seen on 3.10)")
    return "; ".join(reasons)
