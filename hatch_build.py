"""Compiles the modules that each message passes, where there is a C compiler; without one they run interpreted.

The same source either way. What is compiled lies beside its source, also in an editable installation, and Python
prefers it: `make install` compiles again what was changed, and the tests refuse to run with what is older.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PURE = "BROKERKIT_PURE"
"""Set: nothing is compiled."""
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


class CompileHook(BuildHookInterface[Any]):
    """`modules` in its table of pyproject.toml are the sources, as seen from there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        modules: list[str] = self.config["modules"]
        folders = {(root / module).parent for module in modules}
        for old in _compiled(folders):
            old.unlink()
        missing = _missing()
        if missing:
            self.app.display_warning(f"{', '.join(modules)}: interpreted, which is slower, since {missing}")
            return
        with tempfile.TemporaryDirectory() as made:
            # In a process of its own: mypyc takes its settings from the folder it runs in, and exits on errors.
            subprocess.run([sys.executable, __file__, made, *modules], cwd=root, check=True, timeout=600)
            shutil.copytree(Path(made, "lib"), root, dirs_exist_ok=True)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"] += [str(path.relative_to(root)) for path in _compiled(folders)]


def _compiled(folders: set[Path]) -> list[Path]:
    return [path for folder in folders for path in folder.glob(f"*{SUFFIX}")]


def _missing() -> str | None:
    """What compiling needs and is not there."""
    if os.environ.get(PURE):
        return f"{PURE} is set"
    if shutil.which((os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]) is None:
        return "there is no C compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers (python3-dev) are not installed"
    return None


def _build(made: str, modules: list[str]) -> None:
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    options = ["--follow-imports=silent", "--ignore-missing-imports", "--config-file="]
    group = f"{modules[0].split('/')[0]}.compiled"  # what they share lies in the package, too
    extensions = mypycify(
        [*options, *modules], opt_level="3", debug_level="0", target_dir=f"{made}/c", group_name=group
    )
    command = build_ext(Distribution({"ext_modules": extensions}))
    command.build_lib, command.build_temp = f"{made}/lib", f"{made}/temp"
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    _build(sys.argv[1], sys.argv[2:])
