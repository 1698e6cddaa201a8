"""What can be lost, doubled and reordered at each failure point, as data that a suite can hold to account."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Guarantee(StrEnum):
    """What a producer or a consumer asks for by name."""

    AT_MOST_ONCE = "at_most_once"
    AT_LEAST_ONCE = "at_least_once"
    EXACTLY_ONCE = "exactly_once"


class Likelihood(StrEnum):
    """`never` must never be seen, `expected` must be seen, `possible` is reported with its count."""

    NEVER = "never"
    POSSIBLE = "possible"
    EXPECTED = "expected"


class FailurePoint(StrEnum):
    """Where things fail; the names are those of the conformance suite's checks.

    Plugins may add points of their own under any other name.
    """

    NONE = "none"
    CONFIRM_LOST = "confirm_lost"
    SEND_FAILS = "send_fails"
    PRODUCER_KILLED = "producer_killed"
    BROKER_KILLED = "broker_killed"
    BROKER_PAUSED = "broker_paused"
    LEADER_KILLED = "leader_killed"
    CONSUMER_KILLED_BEFORE_PROCESSING = "consumer_killed_before_processing"
    CONSUMER_KILLED_BEFORE_ACK = "consumer_killed_before_ack"
    ACK_LOST_KEPT_AWAY = "ack_lost_kept_away"
    ACK_LOST_BACK_AT_ONCE = "ack_lost_back_at_once"
    CONSUMER_FROZEN = "consumer_frozen"
    LEASE_EXPIRED = "lease_expired"
    LEASE_KEPT = "lease_kept"
    BUFFERED_LEASE = "buffered_lease"
    LEASE_RELEASED = "lease_released"
    CONSUMERS_COME_AND_GO = "consumers_come_and_go"
    CLEAN_SHUTDOWN = "clean_shutdown"
    POISON = "poison"
    TXN_KILLED = "txn_killed"
    TXN_ABORTED = "txn_aborted"
    TXN_TIMED_OUT = "txn_timed_out"
    TXN_COMMIT_ANSWER_LOST = "txn_commit_answer_lost"
    TXN_DELAYED_REQUESTS = "txn_delayed_requests"
    ZOMBIE_FENCED = "zombie_fenced"
    TXN_REBALANCE = "txn_rebalance"
    TXN_LONGER_THAN_SESSION = "txn_longer_than_session"
    TXN_BROKER_KILLED = "txn_broker_killed"
    EXTERNAL_EFFECT_DOUBLES = "external_effect_doubles"


@dataclass(frozen=True, slots=True)
class Claim:
    """The declared likelihoods at one failure point.

    `condition` says when they hold, `source` where that is documented or measured.
    """

    loss: Likelihood = Likelihood.NEVER
    duplicate: Likelihood = Likelihood.NEVER
    reorder: Likelihood = Likelihood.POSSIBLE
    condition: str = ""
    source: str = ""


def weakest(*claims: Claim) -> Claim:
    """What holds where all of these apply: the likeliest in each respect, the conditions of all, the first source."""
    order = list(Likelihood)
    return Claim(
        max((each.loss for each in claims), key=order.index),
        max((each.duplicate for each in claims), key=order.index),
        max((each.reorder for each in claims), key=order.index),
        condition="; ".join(dict.fromkeys(each.condition for each in claims if each.condition)),
        source=next((each.source for each in claims if each.source), ""),
    )


@dataclass(frozen=True, slots=True)
class Properties:
    """What else a plugin states of a target as configured. Seconds and bytes; None means unknown or none."""

    order: str = "none"
    """`none`, `per_key`, `per_partition` or `single_consumer`: where first deliveries keep the send order."""
    lease: str = "none"
    """`none` (until the connection ends), `fixed`, `renewable` or `polling`."""
    lease_seconds: float | None = None
    """How long a delivery is its consumer's without renewal, or, of a `polling` lease, without a poll."""
    short_lease: Mapping[str, str] = field(default_factory=dict)
    """URL parameters under which a lease that nobody keeps is over within seconds."""
    handling_sets_lease: bool = False
    """Whether `declare(handling_seconds=…)` sets how long a `fixed` lease is."""
    redelivery_seconds: float = 1.0
    """The longest time from a consumer's death to the redelivery of what it held."""
    retention_seconds: float | None = None
    """The longest time that a subscription keeps what is not settled; None where it keeps it until it is, or where that
    is not known."""
    nack: str = "immediate"
    """`immediate`, `delayed` (a delay is kept) or `blocks` (the order is kept, later messages wait)."""
    dead_letters: bool = True
    poison_blocks_others: bool = False
    answers_acks: bool = True
    """Whether the broker answers an ack, so that a lost one can be asked again."""
    dedup: str = "none"
    """What the broker recognises again when it is sent twice: `none`, `producer_session` or `message_id`."""
    dedup_window_seconds: float | None = None
    refuses_unroutable: bool = True
    """Whether a send to a topic without any subscription is refused."""
    max_body_bytes: int | None = None
    counts_attempts: bool = True
    durable: str = "broker_kill"
    """`none`, `broker_kill` (survives the broker's process) or `replicated` (survives a node)."""
    transaction_seconds: float | None = None
    """After which the broker ends a transaction that is still open, by itself; None where it never does."""
    transaction_setting: str = ""
    """The URL's parameter that says so."""
    uncommitted: Mapping[str, str] | None = None
    """URL parameters under which a consumer also sees what is not committed, where there are such."""
    notes: tuple[str, ...] = ()
    """What is weaker than the plugin's default, one sentence each."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Per failure point what may happen, and the properties beside it.

    A point that is missing is not claimed: the suite reports what it sees there and judges nothing.
    """

    points: Mapping[str, Claim] = field(default_factory=dict)
    properties: Properties = field(default_factory=Properties)


def together(*parts: Mapping[FailurePoint, Claim]) -> dict[str, Claim]:
    """What parts claim that fail independently, a producer's and a consumer's: per point the weaker of them in each
    respect, under the conditions of all."""
    points = dict.fromkeys(point for part in parts for point in part)
    return {str(point): weakest(*(part[point] for part in parts if point in part)) for point in points}
