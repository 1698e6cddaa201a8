"""The result of one cell: one check, at one pair of guarantees, on one target."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

VERDICTS = ("held", "violated", "not witnessed", "inconclusive", "unsupported", "skipped")
GREEN = frozenset({"held", "unsupported", "skipped"})


@dataclass(slots=True)
class Cell:
    """What results.json has of a cell, and the sentences of its story.

    `guarantee` is the consumer's. `claim` is the plugin's at this point, as plain data, None where it claims
    nothing. `fault` lists what fired, each {kind, target, at (seconds from the start), evidence}. `history` is the
    file's path relative to the report.
    """

    target: str
    check: str
    guarantee: str
    producer_guarantee: str
    store: str = ""
    """Where the effects are, of a check that has them in a store."""
    claim: dict[str, Any] | None = None
    verdict: str = "inconclusive"
    trials: int = 0
    seed: int = 0
    observed: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    fault: list[dict[str, Any]] = field(default_factory=list)
    history: str = ""
    reason: str = ""
    """Why the verdict, in a sentence."""
    asked: str = ""
    done: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def green(self) -> bool:
        """Whether a run with this cell may exit 0."""
        return self.verdict in GREEN

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
