"""What a history proves: pure functions from events to anomalies, counts and metrics. No I/O, no clock, no broker.

The model, before any code:

1. **Messages.** A message is its id. A producer *sends* it; the send ends confirmed (`ok`), refused (`fail`) or
   unknown (`info`). A send without an end, because its process died, is unknown. Refused means certainly not
   stored; unknown means nobody can tell, so such a message may appear or not, and neither is wrong.
2. **Who is owed what.** Every confirmed message is owed to every subscription of the cell. Under an at most once
   producer nothing is ever confirmed: there every message that was handed over and not refused is owed, and the
   ones that do not arrive are what that guarantee costs.
3. **Receive and effect** are different things. A consumer may *receive* a message often; what a guarantee is
   about is the *effect*: the line that stands for the charge, the mail, the row. Loss and duplication are judged
   by effects, the transport by receives. All of it is counted per subscription.
4. **The end.** Nothing can be called lost while it may still arrive. Only a drain that ended `complete`, with
   nothing left in the subscription, turns "not effected" into `lost`. After any other end what is missing is
   `blocked` when an independent reader saw it stored, and `stalled` when nobody can say where it is.
5. **Copies.** A message may come again because its one stored copy was handed out again (*redelivered*), or because
   it was stored twice (*duplicated by the producer*). The native position tells them apart: one position is one
   copy. Copies that an application asked for, by giving the message back, do not count.
6. **Order** is owed within one key of one producer, between first effects: a message sent before another must not
   be effected after it. Which cells owe it is the claim's business, not the checker's.
7. **Words are promises.** "Confirmed" of a message that never reached anybody, and "settled" of a message that
   came again although nothing failed in between, are false, whatever the guarantee. An ack that was still
   called settled after somebody else already had the message is the same lie, told late.
8. **Phantoms.** What is received must have been sent, must not have been refused, and must be what was sent: body,
   key and headers by their digest.
9. **Dead letters.** A message in the dead letters is not lost. It must not have been effected there as well.
10. **The record itself** can be broken. An ack without the effect before it, an effect without a receive, a barrier
    nobody stood at, a number that is not there: then a line is missing, and no verdict built on that history means
    anything. `gaps` says so.
    A fault without evidence that it fired is no fault: `Fault.missing_evidence` says what is missing.

11. **Money.** Where effects are rows of a store, its ledger is the witness: a row read there at the end is an effect,
    of the time at which its worker made it. The books have to agree with themselves: `money`.

12. **Transactions** are judged by `atomic`: a torn one, an aborted read and outputs without their offsets are
    anomalies whatever the guarantee.

Every anomaly carries its trail: all that happened to that message, with the faults around it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from brokerkit_conformance import atomic, money

if TYPE_CHECKING:
    from brokerkit_conformance.history import Event, History

SETTLEMENTS = ("ack", "nack", "reject")


class Kind(StrEnum):
    """The anomalies, by the names that reports use."""

    LOST = "lost"
    BLOCKED = "blocked"
    STALLED = "stalled"
    DUPLICATED = "duplicated"
    REDELIVERED = "redelivered"
    DUPLICATED_BY_PRODUCER = "duplicated_by_producer"
    PHANTOM = "phantom"
    REORDERED = "reordered"
    LEAKED = "leaked"
    FALSE_SUCCESS = "false_success"
    LATE_ACK_SETTLED = "late_ack_settled"
    TORN = "torn"
    ABORTED_READ = "aborted_read"
    WITHOUT_OFFSETS = "without_offsets"


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One thing that went wrong with one message. `times` counts what is beyond the first."""

    kind: Kind
    id: str
    detail: str
    subscription: str = ""
    times: int = 1
    trail: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault as recorded, from its first event to the heal that followed it, in nanoseconds."""

    kind: str
    target: str
    trial: int
    began: int
    ended: int
    fired: bool
    evidence: Mapping[str, Any]

    @property
    def missing_evidence(self) -> str:
        """Why it cannot be said to have fired; empty when it can."""
        if not self.fired:
            return "it was begun and never said to have fired"
        if not self.evidence:
            return "nothing shows that it fired"
        if self.kind == "kill" and self.evidence.get("status") != -9:
            return f"the process ended with {self.evidence.get('status')} instead of -9: that was no SIGKILL"
        if self.kind == "freeze" and self.evidence.get("state") != "T":
            return f"the process was to be stopped, and the kernel says {self.evidence.get('state')}"
        if self.kind in ("broker_kill", "store_kill") and self.evidence.get("pid") == self.evidence.get(
            "pid_after", ""
        ):
            return f"the process {self.evidence.get('pid')} is still there"
        return ""


@dataclass(frozen=True, slots=True)
class Drain:
    """How the reading to the end ended."""

    reason: str = "none"
    missing: int = 0
    depth: int | None = None
    watched: float | None = None
    """Seconds that it read for."""
    owed: float = 0.0
    """Seconds that the slowest redelivery may take: a shorter drain misses the late duplicates."""

    @property
    def complete(self) -> bool:
        return not self.shortcoming

    @property
    def shortcoming(self) -> str:
        """Why it proves nothing; empty when it does."""
        if self.reason == "none":
            return "nothing was read to the end"
        if self.reason != "complete":
            return f"the drain ended at its {self.reason}, with {self.missing} messages missing"
        if self.depth:
            return f"the drain stopped with {self.depth} messages still in the subscription"
        if self.watched is not None and self.watched < self.owed:
            return f"the drain read for {self.watched:g} s, and a redelivery may take {self.owed:g} s"
        return ""


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a history says."""

    anomalies: tuple[Anomaly, ...]
    observed: Mapping[str, int]
    metrics: Mapping[str, Any]
    faults: tuple[Fault, ...]
    drain: Drain
    gaps: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    """Expectations of the check that did not hold, a sentence each."""
    unwitnessed: tuple[str, ...] = ()
    """What the check wanted to see and did not, a sentence each."""

    def of(self, *kinds: Kind) -> list[Anomaly]:
        return [anomaly for anomaly in self.anomalies if anomaly.kind in kinds]


def examine(history: History) -> Findings:
    """Everything at once, from one pass over the messages."""
    view = _View(history)
    found = tuple(_all(view))
    return Findings(
        anomalies=found,
        observed=_observed(view, found),
        metrics=_metrics(view, found),
        faults=tuple(view.faults),
        drain=view.drain,
        gaps=tuple(gaps(history)),
        broken=(
            *_sentences(event for event in history.of("expect", "fail") if not event.get("witness")),
            *money.wrong(history),
        ),
        unwitnessed=tuple(_sentences(event for event in history.of("expect", "fail") if event.get("witness"))),
    )


def anomalies(history: History) -> list[Anomaly]:
    return list(_all(_View(history)))


def lost(history: History) -> list[Anomaly]:
    """Owed, and not effected by the end of a complete drain."""
    return [anomaly for anomaly in _missing(_View(history)) if anomaly.kind is Kind.LOST]


def duplicated(history: History) -> list[Anomaly]:
    """Effected more than once in one subscription."""
    return list(_duplicated(_View(history)))


def redelivered(history: History) -> list[Anomaly]:
    """Received more than once in one subscription."""
    return list(_redelivered(_View(history)))


def duplicated_by_producer(history: History) -> list[Anomaly]:
    """One id stored, or handed out for the first time, at two positions."""
    return list(_stored_twice(_View(history)))


def phantom(history: History) -> list[Anomaly]:
    """Received and never sent, received and refused, or not what was sent."""
    return list(_phantoms(_View(history)))


def reordered(history: History) -> list[Anomaly]:
    """First effects against the order of sending, within one key of one producer."""
    return list(_reordered(_View(history)))


def unsettled(history: History) -> list[Anomaly]:
    """Missing at the end of a drain that was not complete: blocked or stalled."""
    return [anomaly for anomaly in _missing(_View(history)) if anomaly.kind is not Kind.LOST]


def leaked(history: History) -> list[Anomaly]:
    """Rejected and nowhere to be found, or dead-lettered and effected."""
    return list(_leaked(_View(history)))


def transactions(history: History) -> list[Anomaly]:
    """Torn ones, aborted reads, outputs without their offsets."""
    return list(_transactions(_View(history)))


def false_success(history: History) -> list[Anomaly]:
    """Confirmed or settled, and it was not so."""
    view = _View(history)
    return [*_false_confirms(view), *_false_settles(view)]


# ---------------------------------------------------------------- the history, by message


@dataclass(slots=True)
class _Life:
    """What happened to one message."""

    id: str
    sends: list[Event] = field(default_factory=list)
    ends: list[Event] = field(default_factory=list)
    receives: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    effects: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    settles: list[Event] = field(default_factory=list)
    dead: list[Event] = field(default_factory=list)
    stored: list[Event] = field(default_factory=list)

    @property
    def confirmed(self) -> bool:
        return any(end.type == "ok" for end in self.ends)

    @property
    def refused(self) -> bool:
        """Every send of it was refused."""
        return bool(self.ends) and all(end.type == "fail" for end in self.ends) and len(self.ends) >= len(self.sends)

    @property
    def given_back(self) -> bool:
        return any(event.op in ("nack", "reject") for event in self.settles)


class _View:
    """A history turned by message, with what several checkers need."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.lives: dict[str, _Life] = {}
        for event in history:
            if event.id is not None:
                self._file(event, event.id)
        self.actors = {event.actor for event in history if event.op != "fault"}
        self.faults = list(_faults(history))
        self.drain = _drain(history)
        cell = history.cell
        self.at_most_once_producer = cell is not None and cell.get("producer_guarantee") == "at_most_once"
        self.at_most_once_consumer = cell is not None and cell.get("guarantee") == "at_most_once"
        named: Iterable[str] = (cell.get("subscriptions") or ()) if cell else ()
        seen = {name for life in self.lives.values() for name in (*life.receives, *life.effects)}
        self.subscriptions: list[str] = sorted(named) or sorted(seen) or [""]

    def _file(self, event: Event, id: str) -> None:
        life = self.lives.get(id)
        if life is None:
            life = self.lives[id] = _Life(id)
        match event.op, event.type:
            case "send", "invoke":
                life.sends.append(event)
            case "send", _:
                life.ends.append(event)
            case "receive", "ok":
                life.receives[event.get("subscription") or ""].append(event)
            case "effect", "ok":
                life.effects[event.get("subscription") or ""].append(event)
            case "charge", "ok":
                made = replace(event, t=event.get("made_at") or event.t, actor=event.get("by") or event.actor)
                life.effects[event.get("subscription") or ""].append(made)
            case "dead", "ok":
                life.dead.append(event)
            case "stored", "ok":
                life.stored.append(event)
            case (("ack" | "nack" | "reject"), _):
                life.settles.append(event)
            case _:
                return

    def owed(self) -> Iterator[_Life]:
        for life in self.lives.values():
            if life.confirmed or (self.at_most_once_producer and life.sends and not life.refused):
                yield life

    def trail(self, id: str) -> tuple[Event, ...]:
        around = [*self.history.of("fault"), *self.history.of("heal")]
        own = self.history.by_id.get(id, ())
        extra = [event for event in around if event.id != id]
        return tuple(sorted((*own, *extra), key=lambda event: event.t))

    def anomaly(self, kind: Kind, id: str, detail: str, subscription: str = "", times: int = 1) -> Anomaly:
        return Anomaly(kind, id, detail, subscription, times, self.trail(id))


def _all(view: _View) -> Iterator[Anomaly]:
    yield from _missing(view)
    yield from _stalled_consumers(view)
    yield from _duplicated(view)
    yield from _redelivered(view)
    yield from _stored_twice(view)
    yield from _phantoms(view)
    yield from _reordered(view)
    yield from _leaked(view)
    yield from _false_confirms(view)
    yield from _false_settles(view)
    yield from _transactions(view)


# ---------------------------------------------------------------- loss


def _missing(view: _View) -> Iterator[Anomaly]:
    for life in view.owed():
        for name in view.subscriptions:
            if life.effects.get(name) or life.dead:
                continue
            received = life.receives.get(name)
            where = f"received by {received[-1].actor}, never effected" if received else "never received by anybody"
            if view.drain.complete:
                yield view.anomaly(Kind.LOST, life.id, f"{_word(life)}, {where}", name)
            elif life.stored:
                yield view.anomaly(Kind.BLOCKED, life.id, f"{_word(life)} and stored, {where} yet", name)
            else:
                yield view.anomaly(Kind.STALLED, life.id, f"{_word(life)}, {where} yet", name)


def _word(life: _Life) -> str:
    return "confirmed" if life.confirmed else "handed over"


STALL_SECONDS = 60.0
"""How long after a heal consumers may stand still with work before them, when the heal names no bound."""


def _stalled_consumers(view: _View) -> Iterator[Anomaly]:
    """A consumer that had its broker back, had work before it, and did nothing until a fresh one was sent in."""
    heals = view.history.of("heal")
    drains = view.history.of("drain_begin")
    if not heals or not drains:
        return
    healed, drained = heals[-1], drains[0]
    bound = int(float(healed.get("within") or STALL_SECONDS) * 1e9)
    if drained.t - healed.t < bound:
        return
    for name in view.subscriptions:
        receives = [event for event in view.history.of("receive") if (event.get("subscription") or "") == name]
        worked_before = any(event.t < healed.t and not event.get("drain") for event in receives)
        worked_after = any(healed.t <= event.t < drained.t for event in receives)
        left = [life for life in view.owed() if _first(life, name) > drained.t and life.sends[0].t < healed.t]
        if worked_before and not worked_after and left:
            seconds = (drained.t - healed.t) / 1e9
            detail = f"nothing was received for {seconds:.0f} s after the fault was over, with {len(left)} waiting"
            yield view.anomaly(Kind.STALLED, left[0].id, detail, name)


def _first(life: _Life, subscription: str) -> int:
    receives = life.receives.get(subscription)
    return receives[0].t if receives and life.sends else -1


# ---------------------------------------------------------------- repetition


def _duplicated(view: _View) -> Iterator[Anomaly]:
    for life in view.lives.values():
        for name, effects in life.effects.items():
            if len(effects) > 1:
                who = ", ".join(event.actor for event in effects)
                detail = f"effected {len(effects)} times, by {who}"
                yield view.anomaly(Kind.DUPLICATED, life.id, detail, name, len(effects) - 1)


def _redelivered(view: _View) -> Iterator[Anomaly]:
    for life in view.lives.values():
        for name, receives in life.receives.items():
            if len(receives) > 1:
                who = ", ".join(event.actor for event in receives)
                detail = f"received {len(receives)} times, by {who}"
                yield view.anomaly(Kind.REDELIVERED, life.id, detail, name, len(receives) - 1)


def _stored_twice(view: _View) -> Iterator[Anomaly]:
    for life in view.lives.values():
        copies = _copies(life)
        if len(copies) > 1:
            detail = f"stored {len(copies)} times: {', '.join(copies)}"
            yield view.anomaly(Kind.DUPLICATED_BY_PRODUCER, life.id, detail, times=len(copies) - 1)


def _copies(life: _Life) -> list[str]:
    """The stored copies that can be told apart, by position where there is one."""
    stored = {str(event.get("position") or f"copy {number}") for number, event in enumerate(life.stored, 1)}
    if stored or life.given_back:
        return sorted(stored)
    for receives in life.receives.values():
        fresh = {
            str(event.get("position"))
            for event in receives
            if event.get("position") is not None and event.get("attempt") in (None, 1)
        }
        if len(fresh) > 1:
            return sorted(fresh)
    return []


# ---------------------------------------------------------------- phantoms and order


def _phantoms(view: _View) -> Iterator[Anomaly]:
    for life in view.lives.values():
        for name, receives in life.receives.items():
            detail = _phantom(life, receives)
            if detail:
                yield view.anomaly(Kind.PHANTOM, life.id, detail, name)


def _phantom(life: _Life, receives: Sequence[Event]) -> str:
    if not life.sends:
        return "received, and nobody sent it"
    if life.refused:
        return f"received, although the send was refused ({life.ends[-1].get('cause')})"
    digests = {send.get("sha") for send in life.sends} - {None}
    keys = {send.get("key") for send in life.sends}
    for event in receives:
        if event.get("headers_ok") is False:
            return f"{event.actor} received it with other headers, body or key than were sent"
        if digests and event.get("sha") is not None and event.get("sha") not in digests:
            return f"{event.actor} received it with a body, key or headers that were not sent"
        if "key" in event.more and event.get("key") not in keys:
            return f"{event.actor} received it with the key {event.get('key')!r} that was not sent"
    return ""


def _reordered(view: _View) -> Iterator[Anomaly]:
    lanes: dict[tuple[str, str], list[_Life]] = defaultdict(list)
    for life in view.lives.values():
        if life.sends and not life.refused and life.sends[0].get("key") is not None:
            lanes[life.sends[0].actor, str(life.sends[0].get("key"))].append(life)
    for (_, key), lane in lanes.items():
        lane.sort(key=lambda life: (life.sends[0].t, life.sends[0].get("seq") or 0))
        for name in view.subscriptions:
            yield from _overtaken(view, lane, key, name)


def _overtaken(view: _View, lane: Sequence[_Life], key: str, name: str) -> Iterator[Anomaly]:
    """Walks back through what was sent; `earliest` is the first effect of all that was sent later."""
    earliest: Event | None = None
    for life in reversed(lane):
        effects = life.effects.get(name)
        if not effects:
            continue
        if earliest is not None and effects[0].t > earliest.t:
            detail = f"sent before {earliest.id} with the key {key!r}, and effected after it"
            yield view.anomaly(Kind.REORDERED, life.id, detail, name)
        else:
            earliest = effects[0]


# ---------------------------------------------------------------- dead letters and words


def _leaked(view: _View) -> Iterator[Anomaly]:
    for life in view.lives.values():
        rejected = [event for event in life.settles if event.op == "reject" and event.type == "invoke"]
        effected = [event for effects in life.effects.values() for event in effects]
        if life.dead and effected and len(view.subscriptions) == 1:
            yield view.anomaly(Kind.LEAKED, life.id, f"in the dead letters, and effected by {effected[0].actor}")
        elif rejected and not life.dead and not effected and view.drain.complete:
            yield view.anomaly(Kind.LEAKED, life.id, f"rejected by {rejected[-1].actor}, and not in the dead letters")


def _false_confirms(view: _View) -> Iterator[Anomaly]:
    """Confirmed, nothing of the broker or the network failed afterwards, and nobody ever received it.

    An at most once consumer that is killed takes with it what it had acked and not yet recorded."""
    if not view.drain.complete or view.at_most_once_consumer:
        return
    for life in view.lives.values():
        confirm = next((end for end in life.ends if end.type == "ok"), None)
        if confirm is None or life.receives or life.effects or life.dead or life.stored:
            continue
        if not _excused(view, confirm.t, confirm.t + (1 << 62)):
            yield view.anomaly(Kind.FALSE_SUCCESS, life.id, "reported confirmed, and never there")


def _false_settles(view: _View) -> Iterator[Anomaly]:
    for life in view.lives.values():
        if life.settles:
            for name, receives in life.receives.items():
                if len(receives) > 1:
                    yield from _false_settles_of(view, life, name, receives)


def _false_settles_of(view: _View, life: _Life, name: str, receives: Sequence[Event]) -> Iterator[Anomaly]:
    for asked, end in _settled_acks(life):
        mine = [event for event in receives if event.actor == asked.actor and event.t <= asked.t]
        if not mine:
            continue
        for again in receives:
            if again.t <= mine[-1].t or not _same_copy(life, mine[-1], again) or _older(again, mine[-1]):
                continue
            if again.t < end.t and again.actor != asked.actor:
                detail = f"{asked.actor}'s ack was reported settled after {again.actor} had already received it"
                yield view.anomaly(Kind.LATE_ACK_SETTLED, life.id, detail, name)
                break
            if again.t > end.t and not _excused(view, end.t, again.t):
                detail = (
                    f"{asked.actor}'s ack was reported settled, nothing failed, and {again.actor} received it again"
                )
                yield view.anomaly(Kind.FALSE_SUCCESS, life.id, detail, name)
                break


def _settled_acks(life: _Life) -> Iterator[tuple[Event, Event]]:
    """Acks with the end `settled`. Ends are matched with what each actor asked, in order."""
    asked: dict[str, list[Event]] = defaultdict(list)
    for event in life.settles:
        if event.type == "invoke":
            asked[event.actor].append(event)
        elif event.type == "fail":
            if asked[event.actor]:
                asked[event.actor].pop()
        elif event.get("end") != "sent" and asked[event.actor]:
            first = asked[event.actor].pop(0)
            if first.op == "ack" and event.get("end") == "settled":
                yield first, event


def _same_copy(life: _Life, one: Event, other: Event) -> bool:
    """Whether two receives handed out one stored copy; in doubt they did not."""
    if one.get("position") is not None and other.get("position") is not None:
        return bool(one.get("position") == other.get("position"))
    sent_twice = any((end.get("attempts") or 1) > 1 for end in life.ends) or len(life.sends) > 1
    return not sent_twice and len(life.stored) < 2 and other.get("attempt") != 1


def _older(one: Event, other: Event) -> bool:
    """Whether `one` was handed out before `other` and is merely told later: another process stood still with it."""
    mine, others = one.get("attempt"), other.get("attempt")
    return one.actor != other.actor and mine is not None and others is not None and mine < others


def _excused(view: _View, since: int, until: int) -> bool:
    """Whether the broker or the network, not merely a producer or consumer, failed in that time."""
    actors = {event.get("target") or event.actor for event in view.history.of("process_end")}
    actors |= {event.actor for event in view.history.of("process_start")}
    return any(fault.began <= until and fault.ended >= since for fault in view.faults if fault.target not in actors)


def _transactions(view: _View) -> Iterator[Anomaly]:
    some = atomic.lives(view.history)
    found = [(Kind.ABORTED_READ, each) for each in atomic.aborted_reads(some)]
    found += [(Kind.WITHOUT_OFFSETS, each) for each in atomic.without_offsets(some)]
    if view.drain.complete:
        found += [(Kind.TORN, each) for each in atomic.torn(some)]
    for kind, (id, detail, subscription) in found:
        yield view.anomaly(kind, id, detail, subscription)


# ---------------------------------------------------------------- faults, drain, gaps


def _faults(history: History) -> Iterator[Fault]:
    heals = [event.t for event in history.of("heal")]
    open_: dict[tuple[str, str, int], Event] = {}
    for event in history.of("fault"):
        key = (str(event.get("kind", "")), str(event.get("target", "")), int(event.get("trial") or 0))
        if event.type == "invoke":
            open_[key] = event
            continue
        began = open_.pop(key, event)
        if "unsupported" in (event.get("evidence") or ()):  # nothing was done, and the story may do without it
            continue
        yield _fault(key, began, event, heals)
    for key, began in open_.items():
        yield _fault(key, began, None, heals)


def _fault(key: tuple[str, str, int], began: Event, ended: Event | None, heals: Sequence[int]) -> Fault:
    last = ended or began
    over = next((heal for heal in heals if heal >= last.t), last.t)
    evidence = last.get("evidence")
    if not isinstance(evidence, Mapping):
        evidence = {"said": evidence} if evidence else {}
    return Fault(*key, began.t, over, ended is not None and ended.type == "ok", evidence)


def _drain(history: History) -> Drain:
    ends = history.of("drain_end")
    if not ends:
        return Drain()
    end, cell = ends[-1], history.cell
    properties = (cell.get("properties") or {}) if cell else {}
    return Drain(
        str(end.get("reason", "")),
        _total(end.get("missing")) or 0,
        _total(end.get("depth")),
        end.get("seconds"),
        float(properties.get("redelivery_seconds") or 0.0),
    )


def _total(counts: Any) -> int | None:
    """One number of a number, of a list, or of numbers by subscription; None when none is known."""
    if isinstance(counts, Mapping):
        known = [int(count) for count in counts.values() if count is not None]
        return sum(known) if known else None
    if isinstance(counts, (list, tuple)):
        return len(counts)
    return None if counts is None else int(counts)


_BEFORE = {"before_processing": "receive", "before_ack": "effect"}


def gaps(history: History) -> Iterator[str]:
    """Lines that must have been written and are not there, a sentence each."""
    yield from _lines_lost(history)
    done: dict[tuple[str, str | None], set[str]] = defaultdict(set)
    for event in history:
        before = done[event.actor, event.id]
        if event.op in ("effect", "dead") and "receive" not in before:
            yield f"{event.actor} effected {event.id} without a record of receiving it"
        elif event.op == "ack" and event.type == "invoke" and not before & {"effect", "dead"}:
            yield f"{event.actor} acked {event.id} without a record of its effect"
        elif event.op in ("nack", "reject") and event.type == "invoke" and "receive" not in before:
            yield f"{event.actor} gave {event.id} back without a record of receiving it"
        elif event.op == "at" and _BEFORE.get(str(event.get("point")), "at") not in before | {"at", "dead"}:
            yield f"{event.actor} stood at {event.get('point')} of {event.id} without a record of what came before"
        elif event.op == "send" and event.type != "invoke" and "send" not in before:
            yield f"{event.actor} reported the end of {event.id} without a record of sending it"
        before.add(event.op)
    stood = {(event.actor, event.get("point")) for event in history.of("at")}
    for fault in history.of("fault", "ok"):
        point = fault.get("point")
        if point and (fault.get("target"), point) not in stood:
            yield f"{fault.get('target')} was struck at {point}, and its journal does not say that it stood there"


def _lines_lost(history: History) -> Iterator[str]:
    """Numbers missing in a journal, at its end too; what is not numbered was written by hand."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for event in history:
        if event.no is not None:
            numbers[event.actor].add(event.no)
    written = {str(event.get("target")): event.get("lines") for event in history.of("process_end")}
    for actor, found in numbers.items():
        last = max(found)
        if missing := next((number for number in range(1, last) if number not in found), None):
            yield f"{actor}'s journal has no line {missing}"
        if actor not in written:
            yield f"nothing says how {actor} ended, and how many lines it wrote"
    for actor, lines in written.items():
        last = max(numbers.get(actor, ()), default=0)
        if lines is not None and last < lines:
            yield f"{actor}'s journal ends at line {last}, and {lines} were written"


# ---------------------------------------------------------------- counts and metrics


def observed(history: History) -> dict[str, int]:
    """The counts of results.json."""
    view = _View(history)
    return _observed(view, list(_all(view)))


def metrics(history: History) -> dict[str, Any]:
    """The metrics of results.json; None where there was nothing to measure."""
    view = _View(history)
    return _metrics(view, list(_all(view)))


def _observed(view: _View, found: Sequence[Anomaly]) -> dict[str, int]:
    lives = view.lives.values()
    kinds = {kind: len({(a.subscription, a.id) for a in found if a.kind is kind}) for kind in Kind}
    confirmed = sum(life.confirmed for life in lives)
    refused = sum(life.refused for life in lives)
    sent = sum(bool(life.sends) for life in lives)
    return {
        "sent": sent,
        "confirmed": confirmed,
        "unknown": sent - confirmed - refused,
        "refused": refused,
        "received": sum(len(events) for life in lives for events in life.receives.values()),
        "effects": sum(len(events) for life in lives for events in life.effects.values()),
        "lost": kinds[Kind.LOST],
        "blocked": kinds[Kind.BLOCKED],
        "duplicated": kinds[Kind.DUPLICATED],
        "redelivered": kinds[Kind.REDELIVERED],
        "reordered": kinds[Kind.REORDERED],
        "phantom": kinds[Kind.PHANTOM],
    }


def _metrics(view: _View, found: Sequence[Anomaly]) -> dict[str, Any]:
    effects = sorted(
        (event for life in view.lives.values() for events in life.effects.values() for event in events),
        key=lambda event: event.t,
    )
    latencies = sorted(
        (events[0].t - life.sends[0].t) / 1e6
        for life in view.lives.values()
        if life.sends
        for events in life.effects.values()
    )
    owed = sum(1 for _ in view.owed()) * len(view.subscriptions)
    losses = sum(anomaly.kind is Kind.LOST for anomaly in found)
    return {
        "duplicate_count": sum(anomaly.times for anomaly in found if anomaly.kind is Kind.DUPLICATED),
        "message_loss_rate": losses / owed if owed else 0.0,
        "processing_latency_ms": {f"p{part}": percentile(latencies, part) for part in (50, 95, 99)},
        "throughput_rps": _throughput(view, effects),
        "recovery_s": _recovery(view, effects),
        **({"ledger": dict(ledger)} if (ledger := money.sums(view.history)) else {}),
    }


def percentile(ordered: Sequence[float], part: int) -> float | None:
    """Nearest rank of an ascending sequence; None of an empty one."""
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(part / 100 * len(ordered)) - 1)], 3)


def _throughput(view: _View, effects: Sequence[Event]) -> float | None:
    sends = view.history.of("send", "invoke")
    if not effects or not sends or effects[-1].t <= sends[0].t:
        return None
    return round(len(effects) / ((effects[-1].t - sends[0].t) / 1e9), 3)


def _recovery(view: _View, effects: Sequence[Event]) -> float | None:
    """From the end of a fault to the next effect; the longest of the trials."""
    times = [event.t for event in effects]
    waits = [next((t - fault.ended for t in times if t >= fault.ended), None) for fault in view.faults]
    known = [wait / 1e9 for wait in waits if wait is not None]
    return round(max(known), 3) if known else None


def _sentences(expectations: Iterable[Event]) -> Iterator[str]:
    """One sentence for each thing expected, however often it failed."""
    by_what: dict[str, list[Event]] = defaultdict(list)
    for event in expectations:
        by_what[str(event.get("what", "an expectation"))].append(event)
    for what, events in by_what.items():
        got = events[0].get("got")
        often = f" ({len(events)} times)" if len(events) > 1 else ""
        yield f"{what}: {'no' if got in (None, '') else f'got {got}'}{often}"
