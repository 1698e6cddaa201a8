"""The tutorial's plugin, installed as a third party's distribution, works and passes the suite, with no change here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "docs" / "tutorial" / "brokerkit-directory"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the distribution is installed, beside everything else that is."""
    folder = tmp_path_factory.mktemp("tutorial")
    source = folder / "source"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    target = folder / "site"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)],
        check=True,
        timeout=100,
    )
    return {**os.environ, "PYTHONPATH": str(target), "NO_COLOR": "1"}


def python(
    environment: dict[str, str], *arguments: str, cwd: Path, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=timeout
    )


def test_it_is_found_by_its_scheme_once_it_is_installed(installed, tmp_path: Path):
    code = "from brokerkit.plugins import plugin_for; print(plugin_for('dir').name)"
    assert python(installed, "-c", code, cwd=tmp_path).stdout.strip() == "dir"
    without = python({**installed, "PYTHONPATH": ""}, "-c", code, cwd=tmp_path)
    assert "no plugin serves dir:// URLs" in without.stderr


def test_the_example_program_runs_on_it_unchanged(installed, tmp_path: Path):
    program = str(ROOT / "examples" / "payments.py")
    ended = python(installed, program, f"dir://{tmp_path}/queues", "--patience", "1", cwd=tmp_path)
    assert "100 payments charged, $5,000" in ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("dir://host/path", "three slashes"),
        ("dir:///tmp/q?lease_seconds=0", "lease_seconds"),
        ("dir:///tmp/q?colour=blue", "known: lease_seconds"),
        ("dir:///tmp/q?client.fsync=no", "client.fsync"),
    ],
)
def test_a_wrong_url_is_an_error_that_says_what_is_right(installed, tmp_path: Path, url: str, says: str):
    code = f"import brokerkit\ntry: brokerkit.connect({url!r})\nexcept brokerkit.ConfigurationError as e: print(e)"
    assert says in python(installed, "-c", code, cwd=tmp_path).stdout


@pytest.mark.timeout(400)
def test_it_holds_its_claims_under_fire(installed, tmp_path: Path):
    """Every cell is held, unsupported or skipped, and at least a dozen are held."""
    ended = python(
        installed,
        *("-c", "from brokerkit.cli import main; main()"),
        *("conformance", "run", "dir", "--report", str(tmp_path / "out"), "--seed", "1"),
        cwd=tmp_path,
        timeout=380,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    cells = json.loads((tmp_path / "out" / "results.json").read_text())["cells"]
    held = {cell["check"] for cell in cells if cell["verdict"] == "held"}
    assert {"consumer_killed_before_ack", "consumer_frozen", "poison", "producer_killed"} <= held
    assert sum(cell["verdict"] == "held" for cell in cells) >= 12
