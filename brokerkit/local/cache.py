"""What local brokers need and fetched once: folders under the user's cache, complete and checked, or built anew."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from brokerkit.local.contract import Unavailable
from brokerkit.local.progress import Report, progress

MANIFEST = ".manifest.json"


def cache_folder() -> Path:
    """`$BROKERKIT_CACHE`, or `brokerkit` in the user's cache folder."""
    chosen = os.environ.get("BROKERKIT_CACHE")
    return Path(chosen).absolute() if chosen else Path(platformdirs.user_cache_dir("brokerkit", appauthor=False))


def cached(name: str, build: Callable[[Path, Report], None], *, title: str, timeout: float = 900.0) -> Path:
    """The folder `name` of the cache, filled by `build` if it is missing or no longer what was built.

    `build` fills an empty folder at its final place, so what it writes may contain the path. A manifest with the
    hash of each file is written last: a build that was cut short, and a file that was changed, are noticed, and
    then the whole folder is built again. Safe across processes: one builds, the others wait for it.
    """
    folder = cache_folder() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{folder}.lock", timeout=timeout):
            if not intact(folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                with progress(title) as report:
                    build(folder, report)
                    report("checking")
                    write_manifest(folder)
    except Timeout:
        raise Unavailable(f"another process has been busy with {folder} for {timeout:g} s") from None
    return folder


def write_manifest(folder: Path) -> None:
    """Records size, time and SHA-256 of every file of the folder."""
    entries = {path: _entry(folder / path) for path in _files(folder)}
    temporary = folder / f"{MANIFEST}.new"
    temporary.write_text(json.dumps(entries, indent=0))
    temporary.replace(folder / MANIFEST)


def intact(folder: Path) -> bool:
    """Whether the folder holds what its manifest says. A file is hashed only if its size or time differs."""
    try:
        entries = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return all(_unchanged(folder / path, entry) for path, entry in entries.items())


def sha(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _entry(path: Path) -> list[int | str]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, sha(path)]


def _unchanged(path: Path, entry: list[int | str]) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    if [status.st_size, status.st_mtime_ns] == entry[:2]:
        return True
    return status.st_size == entry[0] and sha(path) == entry[2]


def _files(folder: Path) -> Iterator[str]:
    for directory, _, names in os.walk(folder):
        for name in names:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink() and not name.startswith(MANIFEST):
                yield str(path.relative_to(folder))
