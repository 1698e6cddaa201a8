"""What Pub/Sub may lose, double and reorder, from the subscription as it is configured."""

from __future__ import annotations

from dataclasses import dataclass

from brokerkit.guarantees import Claim, Claims, FailurePoint, Guarantee, Likelihood, Properties

NEVER, POSSIBLE, EXPECTED = Likelihood.NEVER, Likelihood.POSSIBLE, Likelihood.EXPECTED

_DELIVERY = "docs.cloud.google.com/pubsub/docs/subscription-overview"
_ONCE = "docs.cloud.google.com/pubsub/docs/exactly-once-delivery"
_PUBLISH = "docs.cloud.google.com/pubsub/docs/publisher"
_DEAD = "docs.cloud.google.com/pubsub/docs/dead-letter-topics"
_MEASURED = "brokerkit conformance, pstest 2.8"


MOST_RETENTION = 31 * 86_400.0
"""The longest that Pub/Sub keeps what is not acked, in seconds: assumed of a subscription that was not looked at."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Of a subscription as it is."""

    ack_deadline: int
    ordering: bool
    exactly_once: bool
    known: bool = True
    """False where its configuration may not be read: nothing is assumed then."""
    retention_seconds: float = MOST_RETENTION


def claims(facts: Facts, emulator: str | None, max_body: int, producer: Guarantee, consumer: Guarantee) -> Claims:
    once = consumer is Guarantee.AT_MOST_ONCE
    blind = producer is Guarantee.AT_MOST_ONCE
    # What a cut costs a producer that waits for no confirm, and a consumer that acks first.
    cut = POSSIBLE if blind or once else NEVER
    dropped = POSSIBLE if once else NEVER
    again = NEVER if once else EXPECTED
    maybe_again = NEVER if once else POSSIBLE
    resent = NEVER if blind else POSSIBLE
    unasked = NEVER if facts.exactly_once and not facts.ordering else POSSIBLE
    leased = unasked if emulator is None or facts.ordering else NEVER
    plain = _unasked(facts)
    points: dict[str, Claim] = {
        FailurePoint.NONE: Claim(NEVER, unasked, condition=plain, source=_ONCE if facts.exactly_once else _DELIVERY),
        FailurePoint.CONFIRM_LOST: Claim(
            cut,
            NEVER if blind else EXPECTED,
            condition=_blind(blind)
            or "sent again with the same id, stored under another of Pub/Sub's: exactly-once delivery does not help",
            source=_PUBLISH,
        ),
        FailurePoint.SEND_FAILS: Claim(
            EXPECTED if blind else dropped,
            resent,
            condition=_blind(blind) or "a send without an answer is tried again",
            source=_PUBLISH,
        ),
        FailurePoint.PRODUCER_KILLED: Claim(
            cut, resent, condition=_blind(blind) or "a send without an answer is tried again", source=_PUBLISH
        ),
        FailurePoint.BROKER_PAUSED: Claim(
            cut, max(resent, maybe_again, unasked, key=_ORDER.index), condition=_why(once, blind), source=_MEASURED
        ),
        FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING: Claim(
            EXPECTED if once else NEVER, maybe_again, condition=_why(once, blind), source=_DELIVERY
        ),
        FailurePoint.CONSUMER_KILLED_BEFORE_ACK: Claim(dropped, again, condition=_why(once, blind), source=_DELIVERY),
        FailurePoint.ACK_LOST_KEPT_AWAY: Claim(dropped, again, condition=_why(once, blind), source=_DELIVERY),
        FailurePoint.ACK_LOST_BACK_AT_ONCE: Claim(
            dropped, maybe_again, condition="an ack without an answer is sent again while the lease lasts", source=_ONCE
        ),
        FailurePoint.CONSUMER_FROZEN: Claim(dropped, again, condition=_why(once, blind), source=_DELIVERY),
        FailurePoint.LEASE_EXPIRED: Claim(
            NEVER,
            again,
            condition="a handler outlasts what its lease is renewed for; its ack ends lost",
            source=_DELIVERY,
        ),
        FailurePoint.LEASE_KEPT: Claim(
            NEVER, leased, condition="leases are renewed at a third, for at most max_lease", source=_MEASURED
        ),
        FailurePoint.BUFFERED_LEASE: Claim(
            NEVER, leased, condition="what waits in a consumer's buffer is renewed too", source=_MEASURED
        ),
        FailurePoint.LEASE_RELEASED: Claim(
            dropped, maybe_again, condition="the leases of a dead, stopped or hung worker run out", source=_DELIVERY
        ),
        FailurePoint.CONSUMERS_COME_AND_GO: Claim(dropped, again, condition=_why(once, blind), source=_DELIVERY),
        FailurePoint.CLEAN_SHUTDOWN: Claim(dropped, unasked, condition=_why(once, blind) or plain, source=_DELIVERY),
        FailurePoint.POISON: Claim(
            dropped,
            maybe_again,
            condition="the hop to the dead letters is a confirmed send, then the ack; Pub/Sub's own may double too",
            source=_DEAD,
        ),
    }
    points |= {
        "hazard_publish_answer_lost": points[FailurePoint.CONFIRM_LOST],
        "hazard_pull_answer_lost": Claim(
            dropped, unasked, condition="the lease of what never arrived runs out", source=_MEASURED
        ),
        "hazard_ack_answer_lost": Claim(
            dropped, unasked, condition="an ack without an answer is sent again while the lease lasts", source=_MEASURED
        ),
        "hazard_renewal_lost": Claim(
            NEVER, unasked, condition="renewals come at a third of the lease", source=_MEASURED
        ),
        "hazard_connection_cut": Claim(
            dropped, maybe_again, condition="leases outlast the connection, and acks are sent again", source=_MEASURED
        ),
    }
    return Claims({str(point): claim for point, claim in points.items()}, _properties(facts, emulator, max_body))


_ORDER = [NEVER, POSSIBLE, EXPECTED]


def _unasked(facts: Facts) -> str:
    if facts.ordering:
        return "a nack brings all later messages of its key again, acked ones too; a session leaves out what it acked"
    if facts.exactly_once:
        return "exactly-once delivery: nothing comes again after an ack that was answered, within one region"
    return "without exactly-once delivery acks are best effort: an acked message may come again"


def _why(once: bool, blind: bool) -> str:
    if once:
        return "acked at hand-over: what a consumer had in hand when it died is gone"
    return _blind(blind) or "what was not acked is handed out again once its lease is over"


def _blind(blind: bool) -> str:
    return "sent once, whatever comes of it" if blind else ""


def _properties(facts: Facts, emulator: str | None, max_body: int) -> Properties:
    notes = [
        "messages sent to a topic without any subscription are dropped, and the send is confirmed",
        "giving back an unstarted delivery burns an attempt",
        "attempts are counted where the subscription was declared with them, and approximately",
        "a delay of a nack is at most 600 s",
    ]
    if facts.ordering:
        notes.append("ordering=true: a nack brings all later messages of its key again, acked ones too")
    else:
        notes.append("ordering=false: keys are carried and order nothing")
    if not facts.exactly_once:
        notes.append("exactly_once=false: the service accepts an ack whose lease is over; brokerkit reports it lost")
    if not facts.known:
        notes.append("the subscription's configuration may not be read: no ordering and no exactly-once is assumed")
    if emulator is not None:
        notes.append(
            f"an emulator at {emulator} stands for the service: it keeps messages in memory; pstest answers an ack "
            "whose lease is over as if it were good, under exactly-once delivery too, and ignores retry backoff"
        )
    return Properties(
        order="per_key" if facts.ordering else "none",
        lease="renewable",
        lease_seconds=facts.ack_deadline,
        short_lease={"ack_deadline": str(min(10, facts.ack_deadline))},
        redelivery_seconds=facts.ack_deadline + 2.0,
        retention_seconds=facts.retention_seconds,
        nack="delayed",
        refuses_unroutable=False,
        max_body_bytes=max_body,
        durable="replicated" if emulator is None else "none",
        notes=tuple(notes),
    )
