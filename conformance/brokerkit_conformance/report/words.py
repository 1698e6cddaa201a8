"""How reports say things: one place, so that the terminal, the page and the XML agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from brokerkit.guarantees import Claim, Guarantee, Likelihood
from brokerkit_conformance.verdict import Question, Verdict, claim_of
from brokerkit_conformance.verdict import exceptions as of_claim

if TYPE_CHECKING:
    from brokerkit_conformance.cell import Cell

Row = tuple[str, str, str, str]
"""A check, the two guarantees it ran at, and its store, if any: one line of the matrix."""

MEANING = {
    Verdict.HELD: "nothing that the claim excludes was seen, and all that it expects was",
    Verdict.VIOLATED: "something was seen that the claim excludes",
    Verdict.NOT_WITNESSED: "what must be provoked here was not, so nothing is proved",
    Verdict.INCONCLUSIVE: "the fault left no evidence, the drain did not end, or the record has a gap",
    Verdict.UNSUPPORTED: "this failure cannot be induced on this target",
    Verdict.SKIPPED: "the plugin claims nothing here",
}


def row_of(cell: Cell) -> Row:
    return (cell.check, cell.producer_guarantee, cell.guarantee, cell.store)


def rows(cells: Iterable[Cell]) -> list[Row]:
    """The lines of the matrix in the order in which they ran, a check's lines together."""
    found = dict.fromkeys(row_of(cell) for cell in cells)
    order = list(dict.fromkeys(row[0] for row in found))
    return sorted(found, key=lambda row: (order.index(row[0]), row[1:]))


def title(check: str) -> str:
    return check.replace("_", " ")


def plain(guarantee: str) -> str:
    return guarantee.replace("_", " ")


def asked(producer: str, consumer: str, store: str = "") -> str:
    """Both guarantees, and the store, in as few words as are clear."""
    if store:
        return f"{plain(consumer)} in {store}"
    if producer == consumer:
        return plain(consumer)
    if producer == "at_least_once":
        return f"received {plain(consumer)}"
    if consumer == "at_least_once":
        return f"sent {plain(producer)}"
    return f"sent {plain(producer)}, received {plain(consumer)}"


def counts(cell: Cell) -> str:
    """`0 lost, 37 twice`, and what else is not nothing; empty where nothing was counted."""
    seen = cell.observed
    if not seen or cell.verdict in (Verdict.UNSUPPORTED, Verdict.SKIPPED):
        return ""
    parts = [f"{seen.get('lost', 0)} lost", f"{seen.get('duplicated', 0)} twice"]
    more = (("blocked", "blocked"), ("phantom", "phantom"))
    parts += [f"{seen[name]} {word}" for name, word in more if seen.get(name)]
    if seen.get("reordered") and (cell.claim or {}).get("reorder") == "never":
        parts.append(f"{seen['reordered']} out of order")
    return ", ".join(parts)


def line(cell: Cell) -> str:
    """`0 lost, 37 twice: held`."""
    found = counts(cell)
    return f"{found}: {cell.verdict}" if found else cell.verdict


def summary(cells: Sequence[Cell]) -> str:
    """`41 held, 1 violated`, in the order of verdicts."""
    parts = [f"{sum(cell.verdict == verdict for cell in cells)} {verdict}" for verdict in Verdict]
    return ", ".join(part for part in parts if not part.startswith("0 ")) or "nothing ran"


def exceptions(cells: Iterable[Cell]) -> list[tuple[str, str, str]]:
    """Target, check and condition of every claim that falls short of the name of its guarantee."""
    found: dict[tuple[str, str, str], None] = {}
    for cell in cells:
        question = Question(claim_of(cell.claim), Guarantee(cell.guarantee), Guarantee(cell.producer_guarantee))
        for note in of_claim(question):
            found[cell.target, title(cell.check), note] = None
    return list(found)


def claimed(claim: Mapping[str, Any] | Claim | None) -> str:
    """What a claim allows, in a word or two: `once`, `doubles`, `may be lost, may double`; a dash for none."""
    found = claim_of(claim) if not isinstance(claim, Claim) else claim
    if found is None:
        return "–"
    parts = [_LOSS[found.loss], _DOUBLED[found.duplicate]]
    return ", ".join(part for part in parts if part) or "once"


_LOSS = {Likelihood.NEVER: "", Likelihood.POSSIBLE: "may be lost", Likelihood.EXPECTED: "is lost"}
_DOUBLED = {Likelihood.NEVER: "", Likelihood.POSSIBLE: "may double", Likelihood.EXPECTED: "doubles"}
