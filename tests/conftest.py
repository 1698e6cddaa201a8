"""Compiled modules hide their sources, so nothing is tested with one that is older than its source."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from brokerkit._compiled import COMPILED

ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    if not COMPILED:
        return
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for folder in (ROOT / "brokerkit", *(ROOT / "plugins").glob("*/brokerkit_*")):
        for compiled in folder.glob(f"*{suffix}"):
            source = folder / f"{compiled.name.removesuffix(suffix)}.py"
            if source.exists() and source.stat().st_mtime > compiled.stat().st_mtime:
                pytest.exit(f"{source.relative_to(ROOT)} was changed since it was compiled: make install", 2)
