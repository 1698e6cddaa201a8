"""`python -m benchmarks.fire [--seed N] [--trials N] [--write PAGE]`: who doubles when workers freeze, come and go.

The suite's checks `txn_longer_than_session` and `txn_rebalance`, with three copiers on the same broker at the same
time: brokerkit's transactions, a loop after the client's own example, and Quix Streams exactly once (`make peers`).
The story, the readers and the count are the same for all. `--write` puts the table into a page, between its markers.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from brokerkit_conformance import checkers
from brokerkit_conformance.cell import Cell
from brokerkit_conformance.checks.registry import checks
from brokerkit_conformance.history import History
from brokerkit_conformance.report import markdown
from brokerkit_conformance.runner import Options, Plan, run_cell
from brokerkit_conformance.targets import Target, understand

from benchmarks.measure import PEERS_PYTHON, peers
from brokerkit.local.keeper import temporary_directory

ROOT = Path(__file__).parents[2]
CHECKS = ("txn_longer_than_session", "txn_rebalance")
OURS, EXAMPLE, QUIX = "brokerkit", "a loop after the client's example", "Quix Streams"
NAME = "peers under fire"
"""Of the table, in the markers of the page it stands in."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a copier made of a check: different messages, whatever number of readers saw them."""

    check: str
    copier: str
    messages: int
    lost: int
    doubled: int
    carried_through: bool
    """Whether the check came to its end: everything was read, and the broker says that nothing is left."""
    reason: str


def main() -> int:
    asked = _arguments()
    if not PEERS_PYTHON.exists():
        print("Quix Streams is not installed: make peers", file=sys.stderr)
        return 1
    with Target(understand("kafka")) as target:
        rows = under_fire(target, asked.seed, asked.trials)
        text = table(rows, target, asked.seed, asked.trials)
    print(text)
    for row in rows:
        print(f"{row.check}, {row.copier}: {row.reason}", file=sys.stderr)
    if asked.write:
        markdown.put(asked.write, NAME, text)
    return 0 if all(row.lost == row.doubled == 0 and row.carried_through for row in rows if row.copier == OURS) else 1


def under_fire(target: Target, seed: int, trials: int) -> list[Row]:
    """Every copier in every check, at the same time."""
    programs: dict[str, dict[str, Sequence[str]]] = {
        OURS: {},
        EXAMPLE: {"copier": _program(sys.executable, "benchmarks.fire.example")},
        QUIX: {"copier": _program(str(PEERS_PYTHON), "benchmarks.fire.quix")},
    }

    def one(check: str, copier: str) -> Row:
        plan = Plan(target.name, dataclasses.replace(checks()[check], trials=trials), "exactly_once", "exactly_once")
        options = Options(seed=seed, programs=programs[copier])
        with temporary_directory("brokerkit-fire-") as report:
            cell = run_cell(target, plan, options, report)
            return row_of(cell, copier, History.load(report / cell.history))

    jobs = [(check, copier) for check in CHECKS for copier in programs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(lambda job: one(*job), jobs))


def _program(python: str, module: str) -> list[str]:
    """`env` becomes the program, so that its process is the one that is frozen and killed."""
    return ["env", f"PYTHONPATH={ROOT}", python, "-m", module]


def row_of(cell: Cell, copier: str, history: History) -> Row:
    lost = {anomaly.id for anomaly in checkers.lost(history)}
    doubled = {anomaly.id for anomaly in checkers.duplicated(history)}
    ends = history.of("drain_end")
    whole = bool(ends) and ends[-1].get("reason") == "complete" and ends[-1].get("missing") == 0
    return Row(cell.check, copier, cell.observed["confirmed"], len(lost), len(doubled), whole, cell.reason)


def table(rows: Sequence[Row], target: Target, seed: int, trials: int) -> str:
    about = target.versions
    found = peers()
    run = (
        f"{about['product']} {about['version']}, one node, {os.cpu_count()} cores, all copiers at the same time; "
        f"confluent-kafka {version('confluent-kafka')}, Quix Streams {found['quixstreams']} "
        f"(on confluent-kafka {found['confluent-kafka']}); {trials} faults a check, seed {seed}."
    )
    lines = ["| check | copier | messages | lost | doubled |", "|---|---|---|---|---|"]
    for row in rows:
        lost = f"{row.lost:,}" if row.carried_through else "not read to the end"
        lines.append(f"| `{row.check}` | {row.copier} | {row.messages:,} | {lost} | {row.doubled:,} |")
    return "\n".join([*lines, "", run])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fire", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1 << 31))
    parser.add_argument("--trials", type=int, default=3, help="how many faults a check induces")
    parser.add_argument("--write", metavar="PAGE", type=Path, help="put the table into this page, between its markers")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
