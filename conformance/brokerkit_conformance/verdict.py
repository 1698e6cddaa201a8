"""The verdict on one cell: what the plugin claims, held against what the history proves. Pure.

- `held`: nothing that the claim excludes was seen, all that it expects was, and the fault is proved to have fired.
- `violated`: something was seen that the claim excludes, or that nothing could allow: a phantom, a false word.
- `not witnessed`: the claim expects a loss or a duplicate here and none was provoked: nothing is proved.
- `inconclusive`: the fault left no evidence, the drain did not reach the end, or the record has a gap.
- `unsupported`: this failure cannot be induced on this target.
- `skipped`: the plugin claims nothing here.

A record with a gap proves nothing, in neither direction. Else violated wins over skipped, that over inconclusive,
that over not witnessed. `never` must not be seen, `expected` must be seen, `possible` is reported. There is no way
out by modesty: where a check has a witness, `possible` must be seen as `expected` must; and at least once with
loss, or at most once with duplicates, is an exception that names its condition or is no claim at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from brokerkit.guarantees import Claim, Guarantee, Likelihood
from brokerkit_conformance.checkers import Anomaly, Findings, Kind, examine

if TYPE_CHECKING:
    from brokerkit_conformance.history import Event, History

NEVER, EXPECTED = Likelihood.NEVER, Likelihood.EXPECTED
AT_MOST_ONCE = Guarantee.AT_MOST_ONCE

UNCONDITIONAL = (
    Kind.PHANTOM,
    Kind.LEAKED,
    Kind.LATE_ACK_SETTLED,
    Kind.FALSE_SUCCESS,
    Kind.TORN,
    Kind.ABORTED_READ,
    Kind.WITHOUT_OFFSETS,
)
"""What no claim allows."""

JUDGED = ((Kind.LOST, "loss"), (Kind.DUPLICATED, "duplicate"), (Kind.REORDERED, "reorder"))


class Verdict(StrEnum):
    HELD = "held"
    VIOLATED = "violated"
    NOT_WITNESSED = "not witnessed"
    INCONCLUSIVE = "inconclusive"
    UNSUPPORTED = "unsupported"
    SKIPPED = "skipped"

    @property
    def green(self) -> bool:
        """Whether a run with such a cell may exit 0."""
        return self in (Verdict.HELD, Verdict.UNSUPPORTED, Verdict.SKIPPED)


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked of the target in one cell."""

    claim: Claim | None
    guarantee: Guarantee = Guarantee.AT_LEAST_ONCE
    """The consumer's."""
    producer_guarantee: Guarantee = Guarantee.AT_LEAST_ONCE
    needs_fault: bool = False
    trials: int = 1
    witness: str = ""
    """What must be seen unless the claim is `never`: `loss`, `duplicate` or nothing."""
    unsupported: str = ""
    """Why this failure cannot be induced on this target."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict, the sentence that says why, and the anomalies that decided it."""

    verdict: Verdict
    why: str
    against: tuple[Anomaly, ...] = ()
    exceptions: tuple[str, ...] = field(default=())
    """Where the claim falls short of the guarantee's name, with the condition."""


def judge(history: History, findings: Findings | None = None) -> Judgement:
    """The verdict on a history that says itself what was asked (its `cell` event)."""
    return decide(question(history), findings or examine(history))


def question(history: History) -> Question:
    """What the history says was asked. Raises ValueError for one that does not say."""
    cell = history.cell
    if cell is None:
        raise ValueError("this history does not say what it was to prove: it has no cell event")
    trials = [event.get("n") or 0 for event in history.of("trial", "invoke")]
    return Question(
        claim=claim_of(cell.get("claim")),
        guarantee=Guarantee(cell.get("guarantee")),
        producer_guarantee=Guarantee(cell.get("producer_guarantee")),
        needs_fault=bool(cell.get("needs_fault")),
        trials=max(1, len(trials)),
        witness=str(cell.get("witness") or ""),
        unsupported=_unsupported(history.of("unsupported")),
    )


def decide(asked: Question, found: Findings) -> Judgement:
    """The verdict, from what was asked and what was found."""
    notes = tuple(exceptions(asked))
    if asked.unsupported:
        return Judgement(Verdict.UNSUPPORTED, asked.unsupported, exceptions=notes)
    if found.gaps:
        more = f" (and {len(found.gaps) - 1} more)" if len(found.gaps) > 1 else ""
        return Judgement(Verdict.INCONCLUSIVE, f"the record has a gap: {found.gaps[0]}{more}", exceptions=notes)
    against, reasons = _violations(asked, found)
    if reasons:
        return Judgement(Verdict.VIOLATED, "; ".join(reasons), tuple(against), notes)
    if asked.claim is None:
        return Judgement(Verdict.SKIPPED, f"the plugin claims nothing here; {_counts(found)}", exceptions=notes)
    if doubt := _doubt(asked, found):
        return Judgement(Verdict.INCONCLUSIVE, doubt, exceptions=notes)
    if unseen := _unseen(asked, found):
        return Judgement(Verdict.NOT_WITNESSED, unseen, exceptions=notes)
    return Judgement(Verdict.HELD, _held(asked, found), exceptions=notes)


def claim_of(data: Mapping[str, Any] | None) -> Claim | None:
    """A claim from plain data, as histories and results carry it."""
    if data is None:
        return None
    return Claim(
        loss=Likelihood(data.get("loss", "never")),
        duplicate=Likelihood(data.get("duplicate", "never")),
        reorder=Likelihood(data.get("reorder", "possible")),
        condition=str(data.get("condition") or ""),
        source=str(data.get("source") or ""),
    )


def exceptions(asked: Question) -> Iterable[str]:
    """Where the claim falls short of the name of the guarantee: the short list that every report prints."""
    claim = asked.claim
    if claim is None:
        return
    condition = claim.condition or "without saying when"
    if AT_MOST_ONCE not in (asked.guarantee, asked.producer_guarantee) and claim.loss is not NEVER:
        yield f"at least once, and loss is {claim.loss}: {condition}"
    if asked.guarantee is asked.producer_guarantee is AT_MOST_ONCE and claim.duplicate is not NEVER:
        yield f"at most once, and a duplicate is {claim.duplicate}: {condition}"


def bound(trials: int) -> float:
    """The rule of three: with nothing seen in n trials, the true rate is at most 3/n, at 95 % confidence."""
    return min(1.0, 3.0 / trials) if trials > 0 else 1.0


def most_severe(verdicts: Iterable[Verdict]) -> Verdict:
    """Of several verdicts the one that a summary must show."""
    return max(verdicts, key=_SEVERITY.index, default=Verdict.SKIPPED)


_SEVERITY = [
    Verdict.SKIPPED,
    Verdict.UNSUPPORTED,
    Verdict.HELD,
    Verdict.NOT_WITNESSED,
    Verdict.INCONCLUSIVE,
    Verdict.VIOLATED,
]


# ---------------------------------------------------------------- the steps


def _violations(asked: Question, found: Findings) -> tuple[list[Anomaly], list[str]]:
    against: list[Anomaly] = []
    reasons: list[str] = []
    for kind, word in JUDGED:
        some = found.of(kind)
        if some and asked.claim is not None and _likelihood(asked.claim, word) is NEVER:
            against += some
            reasons.append(f"{_many(some, kind)}, and the claim says never ({some[0].id}: {some[0].detail})")
    for kind in UNCONDITIONAL:
        if some := found.of(kind):
            against += some
            reasons.append(f"{_many(some, kind)}, which nothing allows ({some[0].id}: {some[0].detail})")
    if found.drain.complete and (some := found.of(Kind.STALLED)):
        against += some
        reasons.append(some[0].detail)
    reasons += found.broken
    reasons += [
        f"the plugin claims {note}: a claim names its condition"
        for note in exceptions(asked)
        if asked.claim is not None and not asked.claim.condition
    ]
    return against, reasons


def _doubt(asked: Question, found: Findings) -> str:
    """Why what was seen proves nothing; empty when it does."""
    if asked.needs_fault:
        if not found.faults:
            return "the fault did not fire: there is no record of any"
        for fault in found.faults:
            if fault.missing_evidence:
                return f"the fault did not fire: {fault.kind} of {fault.target}: {fault.missing_evidence}"
        struck = {fault.trial for fault in found.faults}
        if len(struck) < asked.trials:
            return f"the fault fired in {len(struck)} of {asked.trials} trials"
    if found.drain.shortcoming:
        return found.drain.shortcoming
    if not found.observed["sent"]:
        return "nothing was sent"
    return ""


def _unseen(asked: Question, found: Findings) -> str:
    """What had to be seen and was not; empty when all was."""
    assert asked.claim is not None
    if found.unwitnessed:
        return "; ".join(found.unwitnessed)
    for kind, word in JUDGED:
        likelihood = _likelihood(asked.claim, word)
        witness = asked.witness == word and likelihood is not NEVER
        if (likelihood is EXPECTED or witness) and not found.of(kind):
            claimed = "it is expected here" if likelihood is EXPECTED else "this check has to provoke it"
            return f"no message was {kind}, and {claimed}: a suite that cannot provoke it has proved nothing"
    return ""


def _held(asked: Question, found: Findings) -> str:
    parts = [_counts(found)]
    fired = len(found.faults)
    if asked.needs_fault:
        parts.append(f"the fault fired {_times(fired)}")
    if not found.of(Kind.LOST):
        owed = found.observed["confirmed"] or found.observed["sent"]
        if owed:
            parts.append(f"with none lost of {owed}, the loss rate is at most {bound(owed):.2g} (95 %)")
    return "; ".join(parts)


def _likelihood(claim: Claim, word: str) -> Likelihood:
    return Likelihood(getattr(claim, word))


def _counts(found: Findings) -> str:
    seen = found.observed
    parts = [f"{seen['lost']} lost", f"{seen['duplicated']} twice"]
    if seen["reordered"]:
        parts.append(f"{seen['reordered']} out of order")
    return f"{', '.join(parts)} of {seen['sent']} sent"


def _many(some: Sequence[Anomaly], kind: Kind) -> str:
    return f"{len({(anomaly.subscription, anomaly.id) for anomaly in some})} {_WORDS.get(kind, kind)}"


_WORDS = {
    Kind.DUPLICATED: "effected twice",
    Kind.REORDERED: "out of order",
    Kind.FALSE_SUCCESS: "reported as done and not done",
    Kind.LATE_ACK_SETTLED: "late ack(s) reported settled",
    Kind.TORN: "torn transaction(s)",
    Kind.ABORTED_READ: "aborted read(s)",
    Kind.WITHOUT_OFFSETS: "output(s) without offsets",
}


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _unsupported(events: Sequence[Event]) -> str:
    return str(events[0].get("reason") or "it cannot be induced here") if events else ""
