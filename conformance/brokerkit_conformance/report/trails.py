"""The trail of one message as a person reads it: who did what, when, with what came of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brokerkit_conformance.checkers import Anomaly, Findings, Kind

if TYPE_CHECKING:
    from brokerkit_conformance.history import Event

MOST = 60
"""Trails shown of one cell; the history has the others."""

TOLD = (
    Kind.LOST,
    Kind.DUPLICATED,
    Kind.PHANTOM,
    Kind.FALSE_SUCCESS,
    Kind.LATE_ACK_SETTLED,
    Kind.LEAKED,
    Kind.BLOCKED,
    Kind.STALLED,
    Kind.DUPLICATED_BY_PRODUCER,
    Kind.REORDERED,
)
"""Anomalies that have a trail on the page, the telling ones first; being received again alone has none."""

SHOWN = (
    "end",
    "error",
    "cause",
    "attempts",
    "attempt",
    "position",
    "key",
    "subscription",
    "kind",
    "target",
    "point",
    "reason",
    "evidence",
    "drain",
)
"""What of an event is shown; never a body, which no event has."""

WORDS = {
    ("send", "invoke"): "sends it",
    ("send", "ok"): "is told: confirmed",
    ("send", "fail"): "is told: refused",
    ("send", "info"): "is told: unknown",
    ("receive", "ok"): "receives it",
    ("effect", "ok"): "does the work",
    ("ack", "invoke"): "acks",
    ("nack", "invoke"): "gives it back",
    ("reject", "invoke"): "rejects it",
    ("dead", "ok"): "finds it in the dead letters",
    ("stored", "ok"): "finds a stored copy",
    ("fault", "invoke"): "begins a fault",
    ("fault", "ok"): "the fault fired",
    ("fault", "fail"): "the fault did not fire",
    ("heal", "ok"): "heals",
    ("at", "info"): "stands still",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a trail. `ms` counts from its first line."""

    ms: float
    actor: str
    what: str
    more: str
    tone: str
    """`fault`, `effect`, `bad` or nothing: how the page colours it."""


@dataclass(frozen=True, slots=True)
class Trail:
    id: str
    kinds: tuple[str, ...]
    details: tuple[str, ...]
    steps: tuple[Step, ...]
    decisive: bool


def trails(found: Findings, against: Sequence[Anomaly] = ()) -> tuple[list[Trail], int]:
    """The trails of a cell's telling messages, those that decided the verdict first, and how many are left out."""
    by_id: dict[str, list[Anomaly]] = {}
    for anomaly in sorted(found.of(*TOLD), key=lambda anomaly: TOLD.index(anomaly.kind)):
        by_id.setdefault(anomaly.id, []).append(anomaly)
    decisive = {anomaly.id for anomaly in against}
    order = sorted(by_id, key=lambda id: id not in decisive)
    return [_trail(by_id[id], id in decisive) for id in order[:MOST]], max(0, len(order) - MOST)


def _trail(anomalies: Sequence[Anomaly], decisive: bool) -> Trail:
    first = anomalies[0]
    return Trail(
        first.id,
        tuple(dict.fromkeys(str(anomaly.kind).replace("_", " ") for anomaly in anomalies)),
        tuple(dict.fromkeys(anomaly.detail for anomaly in anomalies)),
        tuple(_steps(first)),
        decisive,
    )


def _steps(anomaly: Anomaly) -> Iterator[Step]:
    events = list(_near(anomaly))
    began = events[0].t if events else 0
    effects: dict[str, int] = {}
    for event in events:
        subscription = str(event.get("subscription") or "")
        if event.op == "effect":
            effects[subscription] = effects.get(subscription, 0) + 1
        again = event.op == "effect" and effects[subscription] > 1
        yield Step((event.t - began) / 1e6, event.actor, _what(event, again), _more(event), _tone(event, again))


def _near(anomaly: Anomaly) -> Iterator[Event]:
    """The message's own events, and those faults that can have touched it: they hit an actor that had it, or the
    broker or network after it was sent, and do not name other messages."""
    own = [event for event in anomaly.trail if event.id == anomaly.id]
    if not own:
        return
    first, last = own[0].t, own[-1].t
    if anomaly.kind in (Kind.LOST, Kind.BLOCKED, Kind.STALLED):
        last = anomaly.trail[-1].t
    had = {event.actor for event in own}
    for event in anomaly.trail:
        if event.id == anomaly.id or (first <= event.t <= last and _touches(event, anomaly.id, had)):
            yield event


def _touches(fault: Event, id: str, had: set[str]) -> bool:
    target = str(fault.get("target") or "")
    named = _ids_in(fault.get("evidence"))
    if named:
        return id in named
    return target in had or not target.startswith(("producer", "consumer"))


def _ids_in(evidence: object) -> set[str]:
    """The messages that a fault's evidence names."""
    if isinstance(evidence, dict):
        found = {str(id) for id in evidence.get("ids") or ()}
        return found.union(*(_ids_in(some) for some in evidence.values()))
    if isinstance(evidence, (list, tuple)):
        return set().union(*(_ids_in(some) for some in evidence))
    return set()


def _what(event: Event, again: bool) -> str:
    if again:
        return "does the work again"
    if event.op in ("ack", "nack", "reject") and event.type != "invoke":
        return "is told" if event.type == "ok" else "cannot settle it"
    return WORDS.get((event.op, event.type), f"{event.op} {event.type}")


def _more(event: Event) -> str:
    return ", ".join(
        f"{name} {_value(event.get(name))}" for name in SHOWN if event.get(name) not in (None, "", {}, False)
    )


def _value(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={_value(some)}" for name, some in value.items() if name != "at")
    if isinstance(value, (list, tuple)):
        return "; ".join(_value(some) for some in value)
    return str(value)


def _tone(event: Event, again: bool) -> str:
    if event.op in ("fault", "heal"):
        return "fault"
    if again or (event.op == "send" and event.type == "fail"):
        return "bad"
    return "effect" if event.op == "effect" else ""
