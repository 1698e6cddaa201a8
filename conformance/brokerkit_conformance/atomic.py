"""What a history says of transactions: torn ones, aborted reads, outputs without their offsets. Pure.

A copier writes `txn` invoke when it takes the first message in, `take` for each message, `put` before each message it
sends, `commit` invoke before it leaves the block, and `txn` with how it ended: ok (committed), fail (nothing
happened), info (nobody can tell). Every output says in a header which transaction sent it, and a reader writes that
down with `receive`. So a transaction

- is *committed*, *aborted* or *unknown*; one whose commit nobody asked for before its process died is aborted;
- is *visible* as soon as one of its outputs was received.

An aborted one must not be visible at all: `aborted reads`. Any other is visible as a whole or not at all, and a
committed one is visible: else it is *torn*. And two visible ones never took in the same copy of a message: else the
outputs of the first came without its offsets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from brokerkit_conformance.history import Event, History


class Found(NamedTuple):
    """One message that shows it."""

    id: str
    detail: str
    subscription: str = ""


@dataclass(slots=True)
class Life:
    """What happened to one transaction."""

    name: str
    actor: str = ""
    takes: list[Event] = field(default_factory=list)
    puts: list[Event] = field(default_factory=list)
    seen: list[Event] = field(default_factory=list)
    asked: bool = False
    end: str = ""

    @property
    def committed(self) -> bool:
        return self.end == "ok"

    @property
    def aborted(self) -> bool:
        return self.end == "fail" or not (self.asked or self.end)

    @property
    def word(self) -> str:
        if self.committed:
            return "committed"
        if self.aborted:
            return "aborted" if self.end else "never asked to be committed"
        return "of unknown end"

    def missing(self) -> list[Event]:
        """Outputs that nobody received."""
        seen = {(event.get("topic"), event.id) for event in self.seen}
        return [put for put in self.puts if (put.get("topic"), put.id) not in seen]


def lives(history: History) -> list[Life]:
    """Every transaction of the history, in the order of their names' first lines."""
    found: dict[str, Life] = {}
    for event in history:
        name = event.get("txn")
        if name is None:
            continue
        life = found.setdefault(name, Life(name))
        match event.op, event.type:
            case "txn", "invoke":
                life.actor = event.actor
            case "txn", end:
                life.end = end
            case "take", _:
                life.takes.append(event)
            case "put", _:
                life.puts.append(event)
            case "commit", "invoke":
                life.asked = True
            case "receive", "ok":
                life.seen.append(event)
            case _:
                continue
    return list(found.values())


def aborted_reads(some: Iterable[Life]) -> Iterator[Found]:
    for life in some:
        for event in life.seen if life.aborted else ():
            yield Found(
                str(event.id),
                f"received by {event.actor}, and its transaction {life.name} was {life.word}",
                event.get("subscription") or "",
            )


def torn(some: Iterable[Life]) -> Iterator[Found]:
    """Asked once everything that will ever be visible has been read."""
    for life in some:
        missing = life.missing()
        if life.aborted or not missing or not (life.committed or life.seen):
            continue
        how = f"{len(missing)} of the {len(life.puts)} outputs of {life.name} ({life.word}) were never seen"
        yield Found(str(missing[0].id), f"{how}, the first in {missing[0].get('topic')}")


def without_offsets(some: Sequence[Life]) -> Iterator[Found]:
    """One stored copy taken in by two transactions that are both visible."""
    by_copy: dict[tuple[str | None, str], list[Life]] = defaultdict(list)
    for life in some:
        if life.seen:
            for take in life.takes:
                by_copy[take.id, str(take.get("position"))].append(life)
    for (id, position), twice in by_copy.items():
        if len(twice) > 1:
            names = " and ".join(life.name for life in twice)
            yield Found(str(id), f"{position} was taken in by {names}, and the outputs of both are visible")


def peeked(history: History, some: Iterable[Life]) -> set[str]:
    """Aborted transactions of which a reader that looks at what is not committed saw an output."""
    aborted = {life.name for life in some if life.aborted}
    return {str(event.get("txn")) for event in history.of("peek") if event.get("txn") in aborted}
