"""What a file may lose, double and reorder, as it is configured."""

from __future__ import annotations

from pathlib import Path

from brokerkit.guarantees import Claim, Claims, FailurePoint, Guarantee, Likelihood, Properties
from brokerkit_sqlite.settings import SqliteSettings

NEVER, POSSIBLE, EXPECTED = Likelihood.NEVER, Likelihood.POSSIBLE, Likelihood.EXPECTED

_NETWORK = (
    *("9p", "afs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4"),
    *("smb2", "smb3", "smbfs", "virtiofs"),
)
_SOURCE = "sqlite.org/wal.html, sqlite.org/atomiccommit.html; held by the conformance suite"


def claims_of(path: Path, settings: SqliteSettings, producer: Guarantee, consumer: Guarantee) -> Claims:
    sent_once = producer is Guarantee.AT_MOST_ONCE
    taken_once = consumer is Guarantee.AT_MOST_ONCE
    atomic = consumer is Guarantee.EXACTLY_ONCE
    again = NEVER if taken_once or atomic else EXPECTED
    maybe_again = NEVER if taken_once or atomic else POSSIBLE
    gone = EXPECTED if taken_once else NEVER
    maybe_gone = POSSIBLE if taken_once else NEVER
    weak = settings.synchronous == "NORMAL"

    def claim(loss: Likelihood, duplicate: Likelihood, condition: str) -> Claim:
        return Claim(loss, duplicate, POSSIBLE, condition, _SOURCE)

    points = {
        FailurePoint.NONE: claim(NEVER, NEVER, "handlers finish within what the leases are renewed for"),
        FailurePoint.CONFIRM_LOST: claim(
            NEVER, NEVER, "the confirm is a return from COMMIT in the same process: there is no wire to lose it on"
        ),
        FailurePoint.SEND_FAILS: claim(
            EXPECTED if sent_once else NEVER,
            NEVER,
            "a file that stays locked or a full disk refuses a send, which at_most_once does not try again",
        ),
        FailurePoint.PRODUCER_KILLED: claim(
            POSSIBLE if sent_once else NEVER, NEVER, "every confirmed send is committed; an open transaction vanishes"
        ),
        FailurePoint.BROKER_KILLED: claim(
            POSSIBLE if weak or sent_once or taken_once else NEVER,
            maybe_again,
            "there is no broker process; a machine that dies loses no commit under synchronous=FULL, the last ones "
            "under NORMAL",
        ),
        FailurePoint.BROKER_PAUSED: claim(
            POSSIBLE if sent_once else maybe_gone,
            maybe_again,
            "there is no broker process; a process stopped inside a transaction keeps the others waiting",
        ),
        FailurePoint.LEADER_KILLED: claim(NEVER, NEVER, "there is one file and no leader"),
        FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING: claim(
            gone, maybe_again, "at_most_once acks before the handler; what was leased and not acked comes back"
        ),
        FailurePoint.CONSUMER_KILLED_BEFORE_ACK: claim(
            maybe_gone, again, "the lease runs out and the message is handed out again"
        ),
        FailurePoint.ACK_LOST_KEPT_AWAY: claim(
            NEVER, NEVER, "an ack is a COMMIT in the same process: there is no wire to lose it on"
        ),
        FailurePoint.ACK_LOST_BACK_AT_ONCE: claim(
            NEVER, NEVER, "an ack is a COMMIT in the same process: there is no wire to lose it on"
        ),
        FailurePoint.CONSUMER_FROZEN: claim(
            maybe_gone, again, "frozen past its lease; the late ack ends lost and touches nothing"
        ),
        FailurePoint.CONSUMERS_COME_AND_GO: claim(
            maybe_gone, maybe_again, "only a killed member's messages come back, when their leases run out"
        ),
        FailurePoint.CLEAN_SHUTDOWN: claim(NEVER, NEVER, "what is not settled is given back"),
        FailurePoint.POISON: claim(
            NEVER, maybe_again, "a failing handler's own effects are repeated at each of its attempts"
        ),
    }
    if atomic:
        points |= _transaction_points()
    return Claims({str(point): found for point, found in points.items()}, _properties(path, settings, producer))


def _transaction_points() -> dict[FailurePoint, Claim]:
    names = [point for point in FailurePoint if point.startswith("txn_")]
    once = Claim(condition="acks and sends are rows of one SQL transaction in one file", source=_SOURCE)
    outside = "what a handler does outside the file is done again when its messages come again"
    return {
        **dict.fromkeys([*names, FailurePoint.ZOMBIE_FENCED], once),
        FailurePoint.EXTERNAL_EFFECT_DOUBLES: Claim(duplicate=EXPECTED, condition=outside, source=_SOURCE),
    }


def _properties(path: Path, settings: SqliteSettings, producer: Guarantee) -> Properties:
    once = producer is Guarantee.EXACTLY_ONCE
    return Properties(
        order="single_consumer",
        lease="renewable",
        lease_seconds=settings.lease_seconds,
        redelivery_seconds=settings.lease_seconds + 1.0,
        nack="delayed",
        dead_letters=True,
        poison_blocks_others=False,
        answers_acks=True,
        dedup="message_id" if once else "none",
        dedup_window_seconds=settings.dedup_window_seconds if once else None,
        refuses_unroutable=True,
        max_body_bytes=settings.max_body_bytes,
        counts_attempts=True,
        durable="broker_kill",
        transaction_seconds=settings.lease_seconds,
        transaction_setting="lease_seconds",
        notes=tuple(_notes(path, settings)),
    )


def _notes(path: Path, settings: SqliteSettings) -> list[str]:
    notes = ["a step of the machine's wall clock shortens or lengthens leases and delays"]
    if settings.synchronous == "NORMAL":
        notes.append("synchronous=NORMAL: the last commits may be lost when the machine dies")
    if settings.retention_seconds:
        notes.append(f"settled messages are kept for {settings.retention_seconds:g} s after they were sent")
    else:
        notes.append("start=earliest begins with the oldest message that some subscription has not settled")
    kind = _file_system(path)
    if kind in _NETWORK:
        notes.append(f"the file lies on {kind}: use by several machines at once damages it")
    return notes


def _file_system(path: Path) -> str:
    """The type of the file system that `path` is on, as Linux tells; empty elsewhere."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    best, kind = -1, ""
    for line in mounts.splitlines():
        _, where, name, *_ = line.split(" ")
        if path.is_relative_to(where) and len(where) >= best:
            best, kind = len(where), name
    return kind
