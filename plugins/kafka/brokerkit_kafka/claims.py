"""What may be lost and doubled, from acks, idempotence, replicas and the guarantees asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from brokerkit.guarantees import Claim, Claims, FailurePoint, Guarantee, Likelihood, Properties, together

if TYPE_CHECKING:
    from brokerkit_kafka.settings import Config

NEVER, POSSIBLE, EXPECTED = Likelihood.NEVER, Likelihood.POSSIBLE, Likelihood.EXPECTED
_MEASURED = "measured by the conformance suite"

_OUTAGES = (FailurePoint.BROKER_KILLED, FailurePoint.BROKER_PAUSED, FailurePoint.LEADER_KILLED)

_UNCONFIRMED = Claim(POSSIBLE, condition="acks=0: nothing tells whether a message was stored")
_SENT_ONCE: Mapping[FailurePoint, Claim] = {
    **dict.fromkeys((FailurePoint.CONFIRM_LOST, FailurePoint.PRODUCER_KILLED, *_OUTAGES), _UNCONFIRMED),
    FailurePoint.SEND_FAILS: replace(_UNCONFIRMED, loss=EXPECTED),
}

_FORGOTTEN = Claim(POSSIBLE, condition="committed at hand-over: what a killed member had in hand is gone")
_TAKEN_ONCE: Mapping[FailurePoint, Claim] = {
    FailurePoint.NONE: Claim(),
    **dict.fromkeys(_OUTAGES, _FORGOTTEN),
    FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING: replace(_FORGOTTEN, loss=EXPECTED),
    FailurePoint.CONSUMER_KILLED_BEFORE_ACK: _FORGOTTEN,
    FailurePoint.ACK_LOST_KEPT_AWAY: _FORGOTTEN,
    FailurePoint.ACK_LOST_BACK_AT_ONCE: _FORGOTTEN,
    FailurePoint.CONSUMER_FROZEN: _FORGOTTEN,
    FailurePoint.LEASE_EXPIRED: Claim(),
    FailurePoint.LEASE_KEPT: Claim(),
    FailurePoint.BUFFERED_LEASE: Claim(),
    FailurePoint.LEASE_RELEASED: _FORGOTTEN,
    FailurePoint.CONSUMERS_COME_AND_GO: _FORGOTTEN,
    FailurePoint.CLEAN_SHUTDOWN: Claim(),
}

_AGAIN = Claim(
    NEVER, POSSIBLE, condition="what was handled and not yet committed is handed out again", source=_MEASURED
)
_SURELY_AGAIN = replace(_AGAIN, duplicate=EXPECTED)
_POLLED = Claim(source=_MEASURED)
_TAKEN_AGAIN: Mapping[FailurePoint, Claim] = {
    FailurePoint.NONE: Claim(),
    **dict.fromkeys(_OUTAGES, _AGAIN),
    FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING: _AGAIN,
    FailurePoint.CONSUMER_KILLED_BEFORE_ACK: _SURELY_AGAIN,
    FailurePoint.ACK_LOST_KEPT_AWAY: _SURELY_AGAIN,
    FailurePoint.ACK_LOST_BACK_AT_ONCE: replace(_AGAIN, condition="back within its session, it commits again"),
    FailurePoint.CONSUMER_FROZEN: _SURELY_AGAIN,
    FailurePoint.LEASE_EXPIRED: replace(_AGAIN, condition="its process stands still and polls no more"),
    FailurePoint.LEASE_KEPT: replace(_POLLED, condition="polling goes on under a slow handler, its partitions paused"),
    FailurePoint.BUFFERED_LEASE: replace(_POLLED, condition="what is buffered is the partition's, kept by polling"),
    FailurePoint.LEASE_RELEASED: _AGAIN,
    FailurePoint.CONSUMERS_COME_AND_GO: _SURELY_AGAIN,
    FailurePoint.CLEAN_SHUTDOWN: Claim(),
    FailurePoint.POISON: Claim(NEVER, POSSIBLE, condition="a dead letter may be sent twice"),
}

_ONCE = Claim(condition="from Kafka to the same Kafka, read at read_committed", source=_MEASURED)
_TRANSACTIONS: Mapping[FailurePoint, Claim] = {
    **dict.fromkeys([point for point in FailurePoint if point is not FailurePoint.LEADER_KILLED], _ONCE),
    FailurePoint.TXN_DELAYED_REQUESTS: replace(
        _ONCE,
        condition="librdkafka ends transactions by EndTxn v1, without an epoch for each (KIP-890), on any broker: so a "
        "producer that may have asked twice is replaced before its next transaction",
    ),
    FailurePoint.EXTERNAL_EFFECT_DOUBLES: replace(
        _ONCE,
        duplicate=EXPECTED,
        condition="what a handler does outside the transaction is done again when its messages come again",
    ),
}


@dataclass(frozen=True, slots=True)
class Facts:
    """Of a topic as it is: copies of each partition, how many must have a message before it is confirmed, and the
    longest that a message is kept; None where that has no end, or is not known."""

    replication: int
    min_insync: int
    retention_seconds: float | None = None


def weakest(facts: Sequence[Facts]) -> Facts:
    """What can be said of all of them."""
    kept = [fact.retention_seconds for fact in facts if fact.retention_seconds is not None]
    return Facts(
        min(fact.replication for fact in facts),
        min(fact.min_insync for fact in facts),
        max(kept) if len(kept) == len(facts) else None,
    )


def claims(config: Config, facts: Facts, max_body: int, producer: Guarantee, consumer: Guarantee) -> Claims:
    sent = [_SENT_ONCE]
    if producer is not Guarantee.AT_MOST_ONCE:
        sent = [_confirmed(config, producer), {FailurePoint.LEADER_KILLED: _leader(config, facts)}]
    taken = {
        Guarantee.AT_MOST_ONCE: _TAKEN_ONCE,
        Guarantee.AT_LEAST_ONCE: _TAKEN_AGAIN,
        Guarantee.EXACTLY_ONCE: _TRANSACTIONS,
    }
    points = together(*sent, taken[consumer])
    if facts.replication < 2:
        del points[FailurePoint.LEADER_KILLED]
    return Claims(points, _properties(config, facts, max_body))


def _confirmed(config: Config, producer: Guarantee) -> Mapping[FailurePoint, Claim]:
    """Of a producer that sends again until it has its confirm."""
    if config.idempotent():
        recognised = "the idempotent producer's own retries are recognised, within its session"
        cut = resent = outage = Claim(condition=recognised, source=_MEASURED)
        if producer is Guarantee.AT_LEAST_ONCE:
            ended = (
                "an outage may end the session of the idempotent producer, and what was under way is sent in another"
            )
            outage = replace(outage, duplicate=POSSIBLE, condition=ended)
    else:
        stored_again = "enable.idempotence=false: a retried batch is stored again"
        resent = outage = Claim(NEVER, POSSIBLE, condition=stored_again, source=_MEASURED)
        cut = replace(resent, duplicate=EXPECTED)
    return {
        FailurePoint.CONFIRM_LOST: cut,
        FailurePoint.SEND_FAILS: resent,
        FailurePoint.PRODUCER_KILLED: resent,
        **dict.fromkeys(_OUTAGES, outage),
    }


def _leader(config: Config, facts: Facts) -> Claim:
    if config.acks() != "all":
        early = f"acks={config.acks()}: confirmed before any follower has the message"
        return Claim(EXPECTED, condition=early, source=_MEASURED)
    if facts.min_insync < 2:
        return Claim(POSSIBLE, condition="min.insync.replicas=1: a confirm may stand for one copy alone")
    return Claim(
        condition=f"acks=all, {facts.replication} replicas, min.insync.replicas={facts.min_insync}, no unclean election"
    )


def _properties(config: Config, facts: Facts, max_body: int) -> Properties:
    idempotent = config.idempotent()
    longest = config.settings.transaction_timeout
    session = config.settings.session_timeout if config.settings.group_protocol == "classic" else None
    weaker = {
        f"topics have {facts.replication} replica(s): they do not survive the loss of a disk": facts.replication < 3,
        f"acks={config.acks()}: a confirmed message may be lost with its leader": config.acks() != "all",
        "enable.idempotence=false: retries may double and reorder": not idempotent,
        f"one node that is killed with transactions open and comes back near {longest:g} s later (transaction_timeout) "
        "may leave them hanging: readers wait there until an operator ends them": facts.replication < 3,
        "the session timeout is the broker's (group.consumer.session.timeout.ms)": session is None,
    }
    return Properties(
        order="per_partition" if idempotent else "none",
        lease="polling",
        lease_seconds=session,
        # librdkafka takes no interval between polls shorter than the session.
        short_lease={} if session is None else {"client.max.poll.interval.ms": f"{session * 1000:.0f}"},
        redelivery_seconds=(session or 45.0) + 2.0,
        retention_seconds=facts.retention_seconds,
        nack="blocks",
        poison_blocks_others=True,
        dedup="producer_session" if idempotent else "none",
        refuses_unroutable=False,
        max_body_bytes=max_body,
        counts_attempts=False,
        transaction_seconds=longest,
        transaction_setting="transaction_timeout",
        uncommitted={"client.isolation.level": "read_uncommitted"},
        durable="replicated" if facts.replication >= 3 and facts.min_insync >= 2 else "broker_kill",
        notes=(
            "a message is stored once it is in the page cache of its replicas: no fsync",
            "attempts are counted while a member lives; after its death they begin again",
            "a handler that hangs keeps its partition for as long as its process polls",
            'retry="topic" gives order up and lets others pass; "block" (the default) keeps it',
            *(note for note, applies in weaker.items() if applies),
        ),
    )
