"""What is fetched is fetched once, whole, and again when it is not what it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from brokerkit.local.cache import cached, intact, write_manifest
from brokerkit.local.progress import Report


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BROKERKIT_CACHE", str(tmp_path / "cache"))


class Build:
    def __init__(self, fails: bool = False) -> None:
        self.times = 0
        self.fails = fails

    def __call__(self, folder: Path, report: Report) -> None:
        self.times += 1
        assert list(folder.iterdir()) == []
        (folder / "sub").mkdir()
        (folder / "sub/file").write_text("content")
        if self.fails:
            raise OSError("the network is down")


def test_it_is_built_once():
    build = Build()
    assert cached("thing/1", build, title="thing") == cached("thing/1", build, title="thing")
    assert build.times == 1


@pytest.mark.parametrize("damage", ["other con", "content!", None], ids=["changed", "longer", "missing"])
def test_a_file_that_is_not_what_it_was_has_the_whole_folder_built_again(damage):
    build = Build()
    file = cached("thing", build, title="thing") / "sub/file"
    file.unlink()
    if damage is not None:
        file.write_text(damage)
    cached("thing", build, title="thing")
    assert build.times == 2
    assert file.read_text() == "content"


def test_a_file_that_was_only_touched_is_kept():
    build = Build()
    file = cached("thing", build, title="thing") / "sub/file"
    file.touch()
    cached("thing", build, title="thing")
    assert build.times == 1


def test_a_build_that_failed_half_way_is_begun_again():
    with pytest.raises(OSError, match="the network is down"):
        cached("thing", Build(fails=True), title="thing")
    build = Build()
    cached("thing", build, title="thing")
    assert build.times == 1


def test_several_processes_build_it_once(tmp_path):
    code = f"""
import time
from brokerkit.local.cache import cached
def build(folder, report):
    with open({str(tmp_path / "builds")!r}, "a") as log: log.write("built\\n")
    time.sleep(0.3)
    (folder / "file").write_text("content")
print(cached("thing", build, title="thing"))
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert [process.wait(30) for process in running] == [0, 0, 0]
    for process in running:
        process.stdout.close()
    assert (tmp_path / "builds").read_text() == "built\n"


def test_a_manifest_that_is_not_json_counts_as_none(tmp_path):
    (tmp_path / "file").write_text("x")
    write_manifest(tmp_path)
    assert intact(tmp_path)
    (tmp_path / ".manifest.json").write_text("{")
    assert not intact(tmp_path)


def test_progress_is_said_on_stderr(capsys):
    cached("thing", Build(), title="a thing")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a thing: checking" in captured.err
