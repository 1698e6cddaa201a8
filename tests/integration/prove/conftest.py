"""The suite as a user runs it, from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Conformance = Callable[..., dict[str, Any]]


@pytest.fixture
def conformance(tmp_path: Path) -> Conformance:
    """Runs `brokerkit conformance run` with these arguments, expects exit 0 and returns its results.json."""

    def run(*arguments: str, timeout: float, report: str = "report") -> dict[str, Any]:
        place = tmp_path / report
        command = [sys.executable, "-m", "brokerkit.cli", "conformance", "run", *arguments, "--report", str(place)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            said, _ = process.communicate(timeout=timeout)
        finally:
            process.terminate()  # it ends its brokers and actors itself; nothing, once it has ended
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        print(said)
        assert process.returncode == 0, said
        found: dict[str, Any] = json.loads((place / "results.json").read_text())
        return found

    return run
