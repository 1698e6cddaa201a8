"""The local emulators: had without Go, Java or the Cloud SDK on PATH, found by other programs, gone when told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from brokerkit.errors import NotSupported
from brokerkit.local.contract import StartFailed, Unavailable
from brokerkit.local.targets import target

pytestmark = pytest.mark.integration


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """The environment of a user who has no session, and nothing on PATH but the system's own tools."""
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("sh", "env"):
        (bare / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    made = {**os.environ, "BROKERKIT_STATE": str(tmp_path / "state"), "PATH": str(bare), "CLOUDSDK_ROOT_DIR": ""}
    made["BROKERKIT_CACHE"] = os.environ.get("BROKERKIT_CACHE", "") or _cache()
    yield made
    command(made, "down")


def _cache() -> str:
    from brokerkit.local.cache import cache_folder

    return str(cache_folder())


def command(env: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "brokerkit.cli", *arguments], env=env, capture_output=True, text=True, timeout=110
    )


def test_env_says_what_is_not_up(alone: Mapping[str, str]) -> None:
    for arguments, words in ((("env",), "nothing is up"), (("env", "pubsub"), "not up: pubsub")):
        ended = command(alone, *arguments)
        assert ended.returncode == 1
        assert words in ended.stderr


def test_what_an_emulator_has_not_is_told(tmp_path: Path) -> None:
    for options, error in (
        ({"nodes": 3}, NotSupported),
        ({"secure": True}, NotSupported),
        ({"settings": {"colour": "red"}}, StartFailed),
    ):
        broker = target("pubsub:pstest")
        broker.provision()
        with pytest.raises(error):
            broker.start(tmp_path, **options)
        broker.stop()


def test_googles_emulator_that_is_not_there_says_how_to_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brokerkit_pubsub import local

    monkeypatch.setattr(local, "_sdk_roots", lambda: [tmp_path])
    with pytest.raises(Unavailable, match="gcloud components install"):
        target("pubsub:google").provision()
    chosen = target("pubsub").provision()
    assert (chosen.provider, chosen.kind) == ("recipe", "emulator")
    assert [reason.partition(":")[0] for reason in chosen.passed] == ["running", "installed"]


def test_a_killed_emulator_is_not_said_to_come_back(tmp_path: Path) -> None:
    broker = target("pubsub:pstest")
    broker.provision()
    broker.start(tmp_path)
    try:
        with pytest.raises(NotSupported, match="keeps nothing on disk"):
            broker.kill()
        assert broker.pids()[0]
    finally:
        broker.stop()


def test_an_emulator_that_the_user_names_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = target("pubsub:pstest")
    mine.provision()
    mine.start(tmp_path)
    try:
        monkeypatch.setenv("BROKERKIT_PUBSUB_URL", mine.url())
        named = target("pubsub")
        assert named.provision().provider == "running"
        named.start(tmp_path / "named", through=[("127.0.0.1", 7)])
        assert named.url() == mine.url()
        assert "emulator_host=127.0.0.1%3A7" in named.url(through=True)
        assert named.upstream() == mine.upstream()
        assert named.environment() == mine.environment()
        named.stop()
        assert mine.pids()[0]
    finally:
        mine.stop()
