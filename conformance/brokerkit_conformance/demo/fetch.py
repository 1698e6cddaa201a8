"""Fetches brokers in the background, while the ledgers are being written.

python -m brokerkit_conformance.demo.fetch TARGET
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import IO

from brokerkit.local.keeper import keeper

TIMEOUT = 300.0


class Fetch:
    """One process for each target; leaving ends those that are still at it."""

    def __init__(self, targets: Sequence[str]) -> None:
        self._said: dict[str, IO[str]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for target in targets:
            self._said[target] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
            self._running[target] = subprocess.Popen(
                [sys.executable, "-m", __name__, target],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said[target],
                env={**os.environ, **keeper().mark},
            )

    def wait(self, target: str, timeout: float = TIMEOUT) -> str:
        """Waits until the target is fetched; returns why it could not be, or nothing."""
        process = self._running[target]
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"it was not fetched within {timeout:.0f} s"
        if status == 0:
            return ""
        said = self._said[target]
        said.seek(0)
        return said.read().strip() or f"fetching it ended with status {status}"

    def __enter__(self) -> Fetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for target, process in self._running.items():
            if process.poll() is None:
                process.terminate()
                process.wait(10.0)
            self._said[target].close()


def main(target: str) -> int:
    from brokerkit.errors import BrokerkitError
    from brokerkit.local.contract import Unavailable
    from brokerkit_conformance.targets import understand

    try:
        make = understand(target).make
        if make is not None:
            make().provision()
    except (Unavailable, BrokerkitError) as why:
        print(why, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
