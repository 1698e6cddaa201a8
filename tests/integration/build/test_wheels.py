"""A wheel has the hot modules compiled, or is pure Python where they cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[3] / "plugins" / "kafka"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
COMPILER = shutil.which("cc") and Path(sysconfig.get_path("include"), "Python.h").exists()


def built(folder: Path, environment: dict[str, str]) -> Path:
    """A copy is built: in the checkout, other tests use what is compiled there."""
    shutil.copytree(PLUGIN, folder / "plugin", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=folder / "plugin",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.skipif(not COMPILER, reason="there is no C compiler, or no Python.h, on this machine")
def test_a_wheel_holds_the_compiled_modules_beside_their_sources(tmp_path: Path) -> None:
    wheel = built(tmp_path, {"BROKERKIT_PURE": ""})
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"brokerkit_kafka/posting{SUFFIX}", "brokerkit_kafka/posting.py"} <= set(names)
    assert "-none-any" not in wheel.name


@pytest.mark.parametrize("environment", [{"BROKERKIT_PURE": "1"}, {"CC": "no-such-compiler"}])
def test_without_a_compiler_a_wheel_is_pure(tmp_path: Path, environment: dict[str, str]) -> None:
    wheel = built(tmp_path, environment)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
