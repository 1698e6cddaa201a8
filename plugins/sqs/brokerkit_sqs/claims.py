"""What SQS standard queues may lose, double and reorder, as the URL configures them."""

from __future__ import annotations

from dataclasses import replace

from brokerkit.guarantees import Claim, Claims, FailurePoint, Guarantee, Likelihood, Properties
from brokerkit_sqs.settings import LEASE_CAP, SqsSettings

NEVER, POSSIBLE, EXPECTED = Likelihood.NEVER, Likelihood.POSSIBLE, Likelihood.EXPECTED

_STANDARD = "docs.aws.amazon.com: Amazon SQS standard queues, at-least-once delivery"
_DELETE = "docs.aws.amazon.com: SQS API, DeleteMessage"
_VISIBILITY = "docs.aws.amazon.com: Amazon SQS visibility timeout"
_MEASURED = "brokerkit conformance, ElasticMQ and moto"
_ANY_TIME = "a standard queue may hand a message out twice although nothing failed"


def claims_of(settings: SqsSettings, limit: int, producer: Guarantee, consumer: Guarantee, *, attached: bool) -> Claims:
    blind = producer is Guarantee.AT_MOST_ONCE
    once = consumer is Guarantee.AT_MOST_ONCE
    unsent = POSSIBLE if blind else NEVER
    dropped = POSSIBLE if once else NEVER
    cut = POSSIBLE if blind or once else NEVER
    again = POSSIBLE if once else EXPECTED

    def claim(loss: Likelihood, duplicate: Likelihood, condition: str, source: str = _STANDARD) -> Claim:
        return Claim(loss, duplicate, POSSIBLE, f"{condition}; {_ANY_TIME}", source)

    resent = "SQS recognises no repeated send: what got no answer is sent again with the same id"
    took = "at most once, what was received and not yet deleted is dropped when it comes again"
    late = "what is deleted only when its lease is over is not handed out: nobody can say whose it was then"
    points = {
        FailurePoint.NONE: claim(dropped, POSSIBLE, late if once else "handlers end while their leases are renewed"),
        FailurePoint.CONFIRM_LOST: claim(unsent, POSSIBLE if blind else EXPECTED, resent),
        FailurePoint.SEND_FAILS: claim(EXPECTED if blind else NEVER, POSSIBLE, resent),
        FailurePoint.PRODUCER_KILLED: claim(unsent, POSSIBLE, "a confirmed send is stored in several places"),
        FailurePoint.BROKER_KILLED: claim(cut, POSSIBLE, _killed(settings, resent), _MEASURED),
        FailurePoint.BROKER_PAUSED: claim(cut, POSSIBLE, f"{resent}; {took}", _MEASURED),
        FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING: claim(EXPECTED if once else NEVER, POSSIBLE, took, _VISIBILITY),
        FailurePoint.CONSUMER_KILLED_BEFORE_ACK: claim(dropped, again, "its lease runs out", _VISIBILITY),
        FailurePoint.ACK_LOST_KEPT_AWAY: claim(dropped, again, "its lease runs out", _VISIBILITY),
        FailurePoint.ACK_LOST_BACK_AT_ONCE: claim(
            dropped, POSSIBLE, "a delete that got no answer is asked again while the lease lasts", _DELETE
        ),
        FailurePoint.CONSUMER_FROZEN: claim(
            dropped, again, "its lease runs out, and nothing is deleted by it any more", _VISIBILITY
        ),
        FailurePoint.LEASE_EXPIRED: claim(
            NEVER,
            POSSIBLE if once else EXPECTED,
            "a handler that outlasts its lease deletes nothing",
            _VISIBILITY,
        ),
        FailurePoint.LEASE_KEPT: claim(
            NEVER, POSSIBLE, "leases are renewed at a third of their length, for at most max_lease", _VISIBILITY
        ),
        FailurePoint.BUFFERED_LEASE: claim(
            NEVER, POSSIBLE, "what waits in a consumer's buffer is renewed with what its handler has", _VISIBILITY
        ),
        FailurePoint.LEASE_RELEASED: claim(dropped, POSSIBLE, "its lease runs out", _VISIBILITY),
        FailurePoint.CONSUMERS_COME_AND_GO: claim(dropped, POSSIBLE, took, _VISIBILITY),
        FailurePoint.CLEAN_SHUTDOWN: claim(dropped, POSSIBLE, f"what is not settled is given back; {took}"),
        FailurePoint.POISON: claim(dropped, POSSIBLE, "a dead letter is sent, confirmed, and then deleted here"),
    }
    hazards = {
        "hazard_handed_out_twice": claim(dropped, again, "another server had not heard of the delete"),
        "hazard_reordered": replace(
            claim(dropped, POSSIBLE, "best effort only"), reorder=POSSIBLE if once else EXPECTED
        ),
        "hazard_delete_swallowed": claim(dropped, again, "a delete that was answered may not stick", _DELETE),
        "hazard_stale_handle_accepted": claim(dropped, again, "nothing is deleted once its lease is over", _DELETE),
        "hazard_batch_failed_in_part": claim(cut, POSSIBLE, "each entry has an end of its own, by its Id"),
        "hazard_received_again": claim(NEVER, POSSIBLE, "the newest receipt handle alone is used", _DELETE),
        "hazard_throttled": claim(cut, POSSIBLE, resent),
    }
    return Claims(
        {str(point): found for point, found in points.items()} | hazards, _properties(settings, limit, attached)
    )


def _killed(settings: SqsSettings, resent: str) -> str:
    if settings.emulator is None:
        return f"{resent}; Amazon's own nodes cannot be killed from here"
    return resent


def _properties(settings: SqsSettings, limit: int, attached: bool) -> Properties:
    return Properties(
        order="none",
        lease="renewable",
        lease_seconds=float(settings.lease_seconds),
        short_lease={"lease_seconds": str(min(4, settings.lease_seconds))},
        redelivery_seconds=settings.lease_seconds + 4.0,  # ElasticMQ was seen 2.4 s late on an idle machine
        retention_seconds=14 * 86_400.0,  # the most that SQS allows: each queue may be set otherwise
        nack="delayed",
        dead_letters=True,
        poison_blocks_others=False,
        answers_acks=True,
        dedup="none",
        refuses_unroutable=False,
        max_body_bytes=limit,
        counts_attempts=True,
        durable="broker_kill" if settings.emulator == "elasticmq" else "none" if settings.emulator else "replicated",
        notes=tuple(_notes(settings, limit, attached)),
    )


def _notes(settings: SqsSettings, limit: int, attached: bool) -> list[str]:
    notes = [
        f"the limit of {limit} bytes counts the attributes as well",
        f"a body that is not text travels as base64, and may have {limit * 3 // 4} bytes",
        f"a lease can be renewed for {LEASE_CAP // 3600} hours from its receipt, and a nack's delay ends there too",
        "SQS counts every handing-over as an attempt, also of what was given back unstarted or lost with a process",
        "what a worker could not reject itself is moved by the redrive policy, without a reason",
        "a topic without a subscription does not exist: its producers cannot be opened",
        "depth is approximate",
        "a message is gone after the queue's retention, 4 days unless it was set otherwise",
    ]
    if settings.fan_out == "sns":
        notes.append("SNS hands a message to each queue on its own: a queue may get it later than another, or twice")
    if attached:
        notes.append("an attached queue keeps its own retention and redrive policy")
    if settings.emulator == "moto":
        notes.append("moto, an emulator, accepts any old receipt handle: a stale delete takes another's message")
        notes.append("moto, an emulator, keeps nothing on disk")
    if settings.emulator == "elasticmq":
        notes.append("ElasticMQ, an emulator, never doubles or reorders by itself as Amazon's queues may")
    return notes
