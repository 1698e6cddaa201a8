"""Declaring what is there already: nothing of it is changed, and what was asked for must be as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brokerkit.errors import ConfigurationError


def check_same(what: str, asked: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Raises ConfigurationError for the first setting in which `what`, a topic or subscription, is not as asked; a
    setting that is None was not asked for."""
    for name, value in asked.items():
        if value is not None and value != there.get(name):
            raise ConfigurationError(
                f"{what} exists with {name}={there.get(name)!r}, not {value!r}: declare it as it is, or delete it"
            )
