"""What a file may lose, double and reorder, as it is configured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from brokerkit.guarantees import Claim, Claims, FailurePoint, Guarantee, Likelihood, Properties, together
from brokerkit_sqlite.engine.place import network_file_system
from brokerkit_sqlite.settings import SqliteSettings

NEVER, POSSIBLE, EXPECTED = Likelihood.NEVER, Likelihood.POSSIBLE, Likelihood.EXPECTED

_SOURCE = "sqlite.org/wal.html, sqlite.org/atomiccommit.html; held by the conformance suite"
_WIRELESS = "a confirm, or an ack, is a COMMIT in the same process: there is no wire to lose it on"


class _Point(NamedTuple):
    """What a weaker guarantee costs at a failure point; nothing else is ever lost or doubled there."""

    condition: str
    sent_once: Likelihood = NEVER
    """Loss, where the producer tries once and waits for no confirm."""
    acked_before: Likelihood = NEVER
    """Loss, where the consumer acks before it handles."""
    acked_after: Likelihood = NEVER
    """Duplicates, where it acks afterwards, outside of the handler's own transaction."""


_POINTS: Mapping[FailurePoint, _Point] = {
    FailurePoint.NONE: _Point("handlers finish within what the leases are renewed for"),
    FailurePoint.CONFIRM_LOST: _Point(_WIRELESS),
    FailurePoint.SEND_FAILS: _Point(
        "a file locked for longer than busy_timeout or a full disk refuses a send, which at_most_once does not try "
        "again",
        POSSIBLE,
    ),
    FailurePoint.PRODUCER_KILLED: _Point("every confirmed send is committed; an open transaction vanishes", POSSIBLE),
    FailurePoint.BROKER_KILLED: _Point(
        "there is no broker process; a machine that dies loses no commit under synchronous=FULL, the last ones "
        "under NORMAL",
        *(POSSIBLE, POSSIBLE, POSSIBLE),
    ),
    FailurePoint.BROKER_PAUSED: _Point(
        "there is no broker process; a process stopped inside a transaction keeps the others waiting",
        *(POSSIBLE, POSSIBLE, POSSIBLE),
    ),
    FailurePoint.LEADER_KILLED: _Point("there is one file and no leader"),
    FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING: _Point(
        "at_most_once acks before the handler; what was leased and not acked comes back", NEVER, EXPECTED, POSSIBLE
    ),
    FailurePoint.CONSUMER_KILLED_BEFORE_ACK: _Point(
        "the lease runs out and the message is handed out again", NEVER, POSSIBLE, EXPECTED
    ),
    FailurePoint.ACK_LOST_KEPT_AWAY: _Point(_WIRELESS),
    FailurePoint.ACK_LOST_BACK_AT_ONCE: _Point(_WIRELESS),
    FailurePoint.CONSUMER_FROZEN: _Point(
        "frozen past its lease; the late ack ends lost and touches nothing", NEVER, POSSIBLE, EXPECTED
    ),
    FailurePoint.LEASE_EXPIRED: _Point(
        "a handler outlasts what its lease is renewed for; the late ack ends lost and touches nothing",
        acked_after=EXPECTED,
    ),
    FailurePoint.LEASE_KEPT: _Point("every lease is renewed at a third of its length, for at most max_lease"),
    FailurePoint.BUFFERED_LEASE: _Point("what waits in a consumer's buffer is renewed with what its handler has"),
    FailurePoint.LEASE_RELEASED: _Point(
        "the leases of a dead, stopped or hung worker run out", NEVER, POSSIBLE, POSSIBLE
    ),
    FailurePoint.CONSUMERS_COME_AND_GO: _Point(
        "only a killed member's messages come back, when their leases run out", NEVER, POSSIBLE, POSSIBLE
    ),
    FailurePoint.CLEAN_SHUTDOWN: _Point("what is not settled is given back"),
    FailurePoint.POISON: _Point(
        "a failing handler's own effects are repeated at each of its attempts", acked_after=POSSIBLE
    ),
}

_ONCE = Claim(condition="acks and sends are rows of one SQL transaction in one file", source=_SOURCE)
_TRANSACTIONS = {
    **dict.fromkeys([point for point in FailurePoint if point.startswith("txn_")], _ONCE),
    FailurePoint.ZOMBIE_FENCED: _ONCE,
    FailurePoint.EXTERNAL_EFFECT_DOUBLES: Claim(
        duplicate=EXPECTED,
        condition="what a handler does outside the file is done again when its messages come again",
        source=_SOURCE,
    ),
}


def claims_of(path: Path, settings: SqliteSettings, producer: Guarantee, consumer: Guarantee) -> Claims:
    parts = [{point: Claim(condition=claimed.condition, source=_SOURCE) for point, claimed in _POINTS.items()}]
    if producer is Guarantee.AT_MOST_ONCE:
        parts.append({point: Claim(loss=claimed.sent_once) for point, claimed in _POINTS.items()})
    if consumer is Guarantee.AT_MOST_ONCE:
        parts.append({point: Claim(loss=claimed.acked_before) for point, claimed in _POINTS.items()})
    if consumer is Guarantee.AT_LEAST_ONCE:
        parts.append({point: Claim(duplicate=claimed.acked_after) for point, claimed in _POINTS.items()})
    if settings.synchronous == "NORMAL":
        parts.append({FailurePoint.BROKER_KILLED: Claim(loss=POSSIBLE)})
    if consumer is Guarantee.EXACTLY_ONCE:
        parts.append(_TRANSACTIONS)
    return Claims(together(*parts), _properties(path, settings, producer))


def _properties(path: Path, settings: SqliteSettings, producer: Guarantee) -> Properties:
    once = producer is Guarantee.EXACTLY_ONCE
    return Properties(
        order="single_consumer",
        lease="renewable",
        lease_seconds=settings.lease_seconds,
        short_lease={"lease_seconds": f"{min(2.0, settings.lease_seconds):g}"},
        redelivery_seconds=settings.lease_seconds + 1.0,
        nack="delayed",
        dedup="message_id" if once else "none",
        dedup_window_seconds=settings.dedup_window_seconds if once else None,
        max_body_bytes=settings.max_body_bytes,
        transaction_seconds=settings.lease_seconds,
        transaction_setting="lease_seconds",
        notes=tuple(_notes(path, settings)),
    )


def _notes(path: Path, settings: SqliteSettings) -> list[str]:
    notes = [
        "a step of the machine's wall clock shortens or lengthens leases and delays",
        "a process that is stopped (SIGSTOP) in the middle of a write keeps the others waiting until it goes on",
    ]
    if settings.synchronous == "NORMAL":
        notes.append("synchronous=NORMAL: the last commits may be lost when the machine dies")
    if settings.retention_seconds:
        notes.append(f"settled messages are kept for {settings.retention_seconds:g} s after they were sent")
    else:
        notes.append("start=earliest begins with the oldest message that some subscription has not settled")
    network = network_file_system(path)
    if network:
        notes.append(f"the file lies on {network}: use by several machines at once damages it")
    return notes
