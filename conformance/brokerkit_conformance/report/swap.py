"""What stays and what changes when a program moves from one broker to another: computed from the claims of URLs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import brokerkit
from brokerkit.driver import Capabilities
from brokerkit.guarantees import Claims, FailurePoint, Guarantee, Properties
from brokerkit_conformance.report import words

NAME = "swap guide"
"""Of the place in a page that holds it."""

_SAID_ELSEWHERE = {"notes", "uncommitted", "transaction_setting"}


@dataclass(frozen=True, slots=True)
class Place:
    """One broker as its URL configures it: a value for each thing that may differ, and its own remarks."""

    name: str
    url: str
    values: Mapping[str, str]
    notes: tuple[str, ...]


def guide(urls: Sequence[str]) -> str:
    """Markdown: a section for each URL's broker, with a column for each of the others."""
    places = [_place(url) for url in urls]
    names = ", ".join(f"`{place.name}` is `{place.url}`" for place in places)
    parts = [
        f"The brokers are as these URLs configure them: {names}.",
        *(_section(place, places) for place in places),
        "## What each says of itself",
        *(_notes(place) for place in places),
    ]
    return "\n\n".join(parts)


def _section(source: Place, places: Sequence[Place]) -> str:
    others = [place for place in places if place is not source]
    moves = [row for row in source.values if any(place.values[row] != source.values[row] for place in others)]
    stays = [row for row in source.values if row not in moves]
    lines = [
        f"## From `{source.name}`",
        "",
        "| | stays with it | " + " | ".join(f"to `{place.name}`" for place in others) + " |",
        "|---" * (2 + len(others)) + "|",
    ]
    for row in moves:
        cells = [_change(source.values[row], place.values[row]) for place in others]
        lines.append(f"| {row} | {source.values[row]} | " + " | ".join(cells) + " |")
    if stays:
        lines += ["", "The same everywhere: " + "; ".join(f"{row} ({source.values[row]})" for row in stays) + "."]
    return "\n".join(lines)


def _change(here: str, there: str) -> str:
    return "=" if here == there else f"**{there}**"


def _notes(place: Place) -> str:
    return f"**`{place.name}`**: " + ("; ".join(place.notes) + "." if place.notes else "nothing further.")


def _place(url: str) -> Place:
    with brokerkit.connect(url) as broker:
        claims, offered = broker.claims(), broker.capabilities
    return Place(
        url.partition(":")[0], url, {**_points(claims), **_offers(offered), **_about(claims)}, claims.properties.notes
    )


def _points(claims: Claims) -> dict[str, str]:
    """At each failure point of at least once, in the order of the catalogue."""
    every = [point for point in FailurePoint if not point.startswith(("txn_", "zombie_", "external_"))]
    return {words.title(point): words.claimed(claims.points.get(point)) for point in every}


def _offers(offered: Capabilities) -> dict[str, str]:
    producer = {f"producer, {words.plain(g)}": g in offered.producer_guarantees for g in Guarantee}
    consumer = {f"consumer, {words.plain(g)}": g in offered.consumer_guarantees for g in list(Guarantee)[:2]}
    more = {"`transactions()`": offered.transactions, "delayed send": offered.delayed_send}
    return {name: _yes(has) for name, has in {**producer, **consumer, **more}.items()}


def _about(claims: Claims) -> dict[str, str]:
    return {
        words.title(each.name): _said(getattr(claims.properties, each.name))
        for each in fields(Properties)
        if each.name not in _SAID_ELSEWHERE
    }


def _said(value: object) -> str:
    if isinstance(value, bool):
        return _yes(value)
    if value is None:
        return "none"
    return f"{value:,.12g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
