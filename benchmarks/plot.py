"""`python -m benchmarks.plot FIGURES.json PICTURE.svg`: what a copy costs, by the seconds between two commits.

Above the rates, below the same as ratios of exactly once to each other side: medians of the run, with the spread of its
rounds as a band.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

CURVE = "kafka: copy exactly once"
OURS = "brokerkit"
NAMES = {OURS: "brokerkit, exactly once", "raw": "confluent-kafka, transactional loop", "quixstreams": "Quix Streams"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("figures", type=Path, help="what `python -m benchmarks --json` wrote")
    parser.add_argument("picture", type=Path)
    asked = parser.parse_args()
    whole = json.loads(asked.figures.read_text())
    rows = sorted((row for row in whole["rows"] if row["work"].startswith(CURVE)), key=lambda row: row["at"])
    if not rows:
        parser.error(f"{asked.figures} has no row of {CURVE!r}")
    draw(rows, whole, asked.picture)


def draw(rows: Sequence[Mapping[str, Any]], whole: Mapping[str, Any], picture: Path) -> None:
    figure = Figure(figsize=(8, 9), layout="constrained")
    rates, ratios = figure.subplots(2, 1, sharex=True)
    sides = [name for name in rows[0]["rounds"] if all(row["rounds"].get(name) for row in rows)]
    for number, name in enumerate(sides):
        _line(rates, rows, name, lambda row, name=name: row["rounds"][name], f"C{number}")
        if name != OURS:
            _line(ratios, rows, name, lambda row, name=name: _ratios(row["rounds"], name), f"C{number}")
    rates.set(ylabel="messages of 1 KiB a second", title="Copy from topic to topic", yscale="log")
    ratios.set(ylabel="exactly once, as a multiple of", xlabel="seconds between two commits", yscale="log")
    ratios.axhline(1.0, color="grey", linewidth=0.8)
    for axes in (rates, ratios):
        axes.set_xscale("log")
        axes.set_xticks([row["at"] for row in rows], [f"{row['at']:g}" for row in rows])
        axes.grid(alpha=0.3)
        axes.legend()
    about = whole["brokers"]["kafka"]
    clients = whole["clients"]
    figure.supxlabel(
        f"Kafka {about['version']}, confluent-kafka {clients['confluent-kafka']}, "
        f"quixstreams {clients.get('quixstreams')}; medians of {whole['rounds']} rounds, {whole['at']}",
        fontsize=7,
    )
    with rc_context({"svg.hashsalt": CURVE, "svg.fonttype": "none"}):  # the same figures make the same file
        figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)


def _ratios(rounds: Mapping[str, Sequence[float]], name: str) -> list[float]:
    """Round by round: what slowed the machine down slowed both."""
    return [ours / other for ours, other in zip(rounds[OURS], rounds[name], strict=False)]


def _line(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, values: Any, colour: str) -> None:
    found = [values(row) for row in rows]
    places = [row["at"] for row in rows]
    axes.plot(places, [median(each) for each in found], marker="o", color=colour, label=NAMES.get(name, name))
    axes.fill_between(places, [min(each) for each in found], [max(each) for each in found], color=colour, alpha=0.12)


if __name__ == "__main__":
    main()
