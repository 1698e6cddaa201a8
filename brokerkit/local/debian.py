"""Programs from Debian packages of any suite, unpacked into a folder: no root, nothing installed.

The mirror, its key and the proxy settings are the machine's own; only the suite is replaced. apt verifies every
package against the signed index. The packages bring their own C library, which `relocate` makes their programs use.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from brokerkit.local.contract import StartFailed, Unavailable
from brokerkit.local.processes import run
from brokerkit.local.progress import Report

APT = Path("/etc/apt")


@dataclass(frozen=True)
class Source:
    """One archive that the machine's apt knows."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()
    """What else the entry says that a copy of it must say too: `Signed-By`, `Trusted`."""

    def text(self, suite: str) -> str:
        """The entry for another suite, as a deb822 stanza."""
        fields = {"Types": "deb", "URIs": " ".join(self.uris), "Suites": suite, "Components": "main"}
        return "".join(f"{key}: {value}\n" for key, value in {**fields, **dict(self.options)}.items())


def sources(apt: Path = APT) -> list[Source]:
    """The machine's sources of binary packages, from both formats."""
    found = []
    listed = sorted((apt / "sources.list.d").glob("*")) if (apt / "sources.list.d").is_dir() else []
    for path in [apt / "sources.list", *listed]:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += _stanzas(text) if path.suffix == ".sources" else _lines(text)
    return found


def archive(apt: Path = APT, release: Path = Path("/etc/os-release")) -> tuple[str, str, Source]:
    """Distribution, its own suite, and the source that serves that suite's `main`. Raises Unavailable."""
    system = _os_release(release)
    distribution, suite = system.get("ID", ""), system.get("VERSION_CODENAME", "")
    aliases = {suite, "stable", "testing", "unstable", "sid"} - {""}
    known = sources(apt)
    if not known:
        raise Unavailable(
            "needs apt sources from which Debian packages can be fetched: this machine has none", excusable=True
        )
    for source in known:
        if "main" in source.components and aliases.intersection(source.suites):
            return distribution, suite, source
    raise Unavailable(f"no apt source serves the main component of {suite or 'this system'}")


def unpack(packages: list[str], suite: str, source: Source, folder: Path, report: Report) -> Path:
    """Fetches packages with all they depend on and unpacks them; returns the root of the unpacked tree.

    Raises Unavailable if the suite or the packages cannot be had.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable("needs apt-get and dpkg-deb, which are not here", excusable=True)
    apt = _Apt(folder / "apt", suite, source)
    root = folder / "root"
    root.mkdir()
    try:
        report(f"reading the index of {suite}")
        apt.run("update", "--error-on=any")
        report(f"fetching {', '.join(packages)} and what they need")
        apt.run("install", "--yes", "--download-only", "--no-install-recommends", *packages)
    except StartFailed as error:
        raise Unavailable(f"apt cannot fetch {', '.join(packages)} of {suite}: {error}") from error
    report("unpacking")
    for package in sorted((folder / "apt/cache/archives").glob("*.deb")):
        run(["dpkg-deb", "--extract", package, root], env=_environment(), timeout=120)
    shutil.rmtree(folder / "apt")
    for unused in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info"):
        shutil.rmtree(root / unused, ignore_errors=True)
    return root


def relocate(root: Path, programs: list[Path]) -> None:
    """Makes unpacked programs run with the C library beside them: each becomes a wrapper that names its loader.

    The folder cannot be moved afterwards.
    """
    # Older suites have lib/ apart from usr/lib/, and links between them that are meant for the root directory.
    folders = [path for top in ("lib", "usr/lib") for path in sorted((root / top).glob("*-linux-gnu*"))]
    loaders = [path for folder in folders for path in folder.glob("ld-linux*.so*") if _within(root, path)]
    if not loaders:
        raise Unavailable(f"the unpacked packages have no dynamic loader under {root}")
    libraries = ":".join(map(str, folders))
    for program in programs:
        real = program.with_name(f"{program.name}.real")
        program.rename(real)
        program.write_text(
            f"#!/bin/sh\nexec {shlex.quote(str(loaders[0]))} --library-path {shlex.quote(libraries)}"
            f' --argv0 {shlex.quote(str(program))} {shlex.quote(str(real))} "$@"\n'
        )
        program.chmod(0o755)


def is_elf(path: Path) -> bool:
    """Whether a file is a compiled program."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _within(root: Path, path: Path) -> bool:
    return path.is_file() and path.resolve().is_relative_to(root.resolve())


class _Apt:
    """A private apt: own lists, own cache and an empty status, so that it sees nothing as installed."""

    def __init__(self, folder: Path, suite: str, source: Source) -> None:
        for name in ("state/lists/partial", "cache/archives/partial", "etc/parts"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "etc/private.sources").write_text(source.text(suite))
        self._config = folder / "apt.conf"
        self._config.write_text(
            f'''#clear APT::Update;
#clear DPkg;
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/etc/private.sources";
Dir::Etc::sourceparts "{folder}/etc/parts";
Dir::Etc::preferences "{folder}/etc/none";
Dir::Etc::preferencesparts "{folder}/etc/parts";
APT::Sandbox::User "";
APT::Get::AllowUnauthenticated "false";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::http::Timeout "60";
Acquire::https::Timeout "60";
Acquire::Retries "2";
'''
        )

    def run(self, *arguments: str) -> str:
        return run(["apt-get", "--config-file", self._config, "--quiet", *arguments], env=_environment(), timeout=600)


def _environment() -> Mapping[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _stanzas(text: str) -> list[Source]:
    found = []
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t") and name:
                fields[name] += "\n" + line
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        options = tuple(
            (label, fields[label.lower()]) for label in ("Signed-By", "Trusted") if fields.get(label.lower())
        )
        found.append(
            Source(
                tuple(fields.get("uris", "").split()),
                tuple(fields.get("suites", "").split()),
                tuple(fields.get("components", "").split()),
                options,
            )
        )
    return found


def _lines(text: str) -> list[Source]:
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)((?:\s+[^#\s]+)*)", line)
        if not match:
            continue
        given = dict(option.partition("=")[::2] for option in (match[1] or "").split())
        labels = {"signed-by": "Signed-By", "trusted": "Trusted"}
        options = tuple((labels[key], value) for key, value in given.items() if key in labels)
        found.append(Source((match[2],), (match[3],), tuple(match[4].split()), options))
    return found


def _os_release(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return {}
    return {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in text.splitlines())}
