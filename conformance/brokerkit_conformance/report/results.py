"""results.json: every cell as data, and the versions of everything that took part."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from brokerkit_conformance.report import words

if TYPE_CHECKING:
    from brokerkit_conformance.runner import Run

OURS = "brokerkit-mq"


def results(run: Run, about: Mapping[str, Any]) -> dict[str, Any]:
    """The whole run as plain data."""
    return {
        **about,
        "green": run.green,
        "summary": words.summary(run.cells),
        "versions": versions(),
        "targets": {name: dict(some) for name, some in run.versions.items()},
        "unavailable": dict(run.unavailable),
        "exceptions": [
            {"target": target, "check": check, "exception": note} for target, check, note in words.exceptions(run.cells)
        ],
        "cells": [cell.as_dict() for cell in run.cells],
    }


def versions() -> dict[str, str]:
    """Python, the platform, our distributions, and the libraries that these ask for."""
    known = {"python": platform.python_version(), "platform": platform.platform()}
    ours = sorted(
        name for dist in metadata.distributions() if (name := dist.metadata["Name"]) and name.startswith(OURS)
    )
    wanted = dict.fromkeys([*ours, *(name for dist in ours for name in _asks_for(dist))])
    for name in wanted:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            # Asked for by an extra that is not installed here.
            continue
    return known


def _asks_for(distribution: str) -> Iterator[str]:
    for requirement in metadata.requires(distribution) or ():
        if match := re.match(r"[A-Za-z0-9._-]+", requirement):
            yield match[0]
