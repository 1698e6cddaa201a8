"""Idempotency keys in PostgreSQL, SQLite and Valkey: one effect and one answer, whoever dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import valkey as client

from brokerkit import once
from brokerkit.errors import (
    AccessRefused,
    Closed,
    ConfigurationError,
    ConnectionLost,
    KeyInUse,
    KeyLost,
    KeyReused,
    NotFound,
)
from brokerkit.local.contract import LocalBroker
from brokerkit.local.fixtures import TestBroker
from brokerkit.local.keeper import temporary_directory
from brokerkit.local.targets import target
from brokerkit.once import Keys
from brokerkit.once.stores import keys as sql
from brokerkit.once.stores import valkey as scripts

from .conftest import connect, tables, within

pytestmark = pytest.mark.integration
HOLDER = Path(__file__).with_name("holder.py")


@pytest.fixture(params=["postgresql", "sqlite", "valkey"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place for keys that no other test uses."""
    if request.param == "valkey":
        server: TestBroker = request.getfixturevalue("valkey")
        client.Valkey.from_url(server.url).flushall()
        yield server.url
    else:
        with tables(request, request.param, tmp_path) as made:
            yield made


@pytest.fixture
def keys(store: str) -> Iterator[Keys]:
    with Keys(store, "holders", lease=3.0) as made:
        yield made


@pytest.fixture
def holder(store: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that holds a key; it ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(key: str, what: str, lease: float = 2.0, *clock: str) -> subprocess.Popen[str]:
        words = [sys.executable, str(HOLDER), store, key, str(lease), str(tmp_path / "effects"), what, *clock]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return said(process)


def effects(folder: Path) -> list[str]:
    log = folder / "effects"
    return log.read_text().split() if log.exists() else []


# ---------------------------------------------------------------- one effect, one answer


def test_fifty_at_once_make_one_effect_and_get_one_answer(store: str):
    made: list[str] = []
    answers: list[bytes] = []
    failures: list[BaseException] = []
    start = threading.Barrier(50)
    several = [Keys(store, "charges") for _ in range(5)]

    def ask(number: int) -> None:
        try:
            start.wait(30)
            with several[number % 5].hold("evt-1", b"50 dollars", wait=60) as held:
                if held.fresh:
                    made.append(f"charge {number}")
                    time.sleep(0.2)
                    held.finish(made[-1].encode())
                answers.append(held.result)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    for each in several:
        each.close()
    assert failures == []
    assert len(made) == 1
    assert answers == [made[0].encode()] * 50


def test_the_result_is_given_again_and_other_keys_and_names_are_others(store: str, keys: Keys):
    with keys.hold("a", b"x") as held:
        assert (held.fresh, held.attempts, held.key) == (True, 1, "a")
        held.result = b"\0\xffanswer"
    with keys.hold("a", b"x") as held:
        assert (held.fresh, held.result) == (False, b"\0\xffanswer")
    assert keys.hold("b", b"x").fresh
    with Keys(store, "others") as others, others.hold("a", b"another request") as held:
        assert held.fresh


def test_a_failed_one_may_be_tried_again_at_once(keys: Keys):
    with pytest.raises(ZeroDivisionError), keys.hold("a", b"x"):
        raise ZeroDivisionError
    with keys.hold("a", b"x") as held:
        assert (held.fresh, held.attempts) == (True, 2)
    assert not keys.hold("a", b"x").fresh


@pytest.mark.parametrize("state", ["in progress", "done", "failed"])
def test_another_request_with_the_same_key_is_refused_by_name_in_every_state(keys: Keys, state: str):
    held = keys.hold("a", b"50 dollars")
    if state == "done":
        held.finish()
    elif state == "failed":
        held.fail()
    with pytest.raises(KeyReused, match="'a' came with another request"):
        keys.hold("a", b"60 dollars")


def test_while_it_is_in_progress_others_are_told_so_or_wait(keys: Keys):
    held = keys.hold("a", b"x")
    with pytest.raises(KeyInUse, match="in progress elsewhere") as raised:
        keys.hold("a", b"x")
    assert 0 < raised.value.seconds <= 3.0
    threading.Timer(0.5, held.finish, [b"done"]).start()
    assert keys.hold("a", b"x", wait=10).result == b"done"


def test_the_decorator_gives_the_first_result_again(keys: Keys):
    calls = []

    @keys.once(key=lambda order, amount: order)
    def charge(order: str, amount: int) -> dict[str, Any]:
        calls.append(order)
        return {"order": order, "paid": (amount, "dollars")}

    first = charge("o-1", 50)
    assert first == charge("o-1", amount=50) == {"order": "o-1", "paid": [50, "dollars"]}
    with pytest.raises(KeyReused):
        charge("o-1", 60)
    assert calls == ["o-1"]


# ---------------------------------------------------------------- leases


def test_a_working_holder_keeps_its_lease(store: str):
    with Keys(store, "holders", lease=2.0) as keys, keys.hold("a", b"x") as held:
        until = time.monotonic() + 4.5
        while time.monotonic() < until:
            with pytest.raises(KeyInUse):
                keys.hold("a", b"x")
            held.check()
            time.sleep(0.1)
        held.finish(b"slow")
        assert keys.hold("a", b"x").result == b"slow"


@pytest.mark.parametrize("what", ["before", "after"])
def test_a_killed_holder_is_followed_by_one_when_its_lease_is_over(keys: Keys, holder, what: str, tmp_path: Path):
    process = holder("a", what)
    assert said(process) == "held 1"
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    killed = time.monotonic()
    with pytest.raises(KeyInUse):
        keys.hold("a", b"request")
    fresh: list[bool] = []

    def follow() -> None:
        with keys.hold("a", b"request", wait=20) as held:
            fresh.append(held.fresh)
            assert not held.fresh or held.attempts == 2
            held.result = held.result or b"second"

    threads = [threading.Thread(target=follow) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(fresh) == [False] * 7 + [True]
    assert time.monotonic() - killed < 20
    assert effects(tmp_path) == (["a"] if what == "after" else []), "which the second holder must find out, by the key"
    assert keys.hold("a", b"request").result == b"second"


def stale(keys: Keys, process: subprocess.Popen[str]) -> str:
    """The holder sleeps past its lease, another one finishes, the first wakes up and finishes."""
    assert said(process) == "held 1"
    process.send_signal(signal.SIGSTOP)
    with keys.hold("a", b"request", wait=20) as held:
        assert held.fresh
        held.result = b"second"
    process.send_signal(signal.SIGCONT)
    return go_on(process)


def test_a_holder_that_comes_late_stores_nothing(keys: Keys, holder):
    assert stale(keys, holder("a", "after")).startswith("lost: the lease of key 'a' was over")
    assert keys.hold("a", b"request").result == b"second"


def test_a_store_that_completes_unconditionally_would_be_seen(keys: Keys, monkeypatch: pytest.MonkeyPatch):
    """The mutant of the test above."""
    monkeypatch.setattr(
        sql, "_SETTLE", sql._SETTLE.replace("owner = :owner and state in ('in_progress', :state)", "true")
    )
    if isinstance(keys._store, scripts.ValkeyKeys):
        text = "redis.call('HSET', KEYS[1], 'state', ARGV[2], 'result', ARGV[3]) return 1"
        keys._store._scripts = {**keys._store._scripts, scripts._SETTLE: keys._store._client.register_script(text)}
    first = keys.hold("a", b"x")
    keys._let_go(first)  # its process sleeps: nothing renews
    with keys.hold("a", b"x", wait=10) as second:
        assert second.fresh
        second.result = b"second"
    first.finish(b"first")
    assert keys.hold("a", b"x").result == b"first"


@pytest.mark.parametrize("jump", [400 * 86400.0, -400 * 86400.0])
def test_a_jump_of_a_holder_s_clock_changes_nothing(keys: Keys, holder, jump: float):
    first = holder("a", "before", 5.0, str(jump))
    assert said(first) == "held 1"
    second = holder("a", "before", 5.0, str(-jump))
    assert said(second).startswith("in use")
    with pytest.raises(KeyInUse) as raised:
        keys.hold("a", b"request")
    assert 0 < raised.value.seconds <= 5.0
    assert go_on(first) == "finished"


def jump_in_the_store(keys: Keys, store: str, seconds: int) -> None:
    """As when the store's clock goes forward by so much: what it wrote down lies that much longer ago."""
    if store.startswith("valkey"):
        with closing(client.Valkey.from_url(store)) as server:
            server.hincrby("brokerkit:holders:a", "lease_until", -seconds * 1000)
    else:
        with closing(connect(store)) as db:
            db.execute(f"update brokerkit_keys set lease_until = lease_until - {seconds * 1000}")
            db.commit()


def test_the_store_s_clock_going_forward_ends_a_lease_and_the_late_result_is_not_stored(store: str):
    with Keys(store, "holders", lease=60) as keys:
        first = keys.hold("a", b"x")
        jump_in_the_store(keys, store, 3600)
        with keys.hold("a", b"x") as second:
            assert second.fresh
            with pytest.raises(KeyLost):
                first.finish(b"first")
            second.result = b"second"
        assert keys.hold("a", b"x").result == b"second"


def test_the_store_s_clock_going_back_takes_nothing_from_the_holder(store: str):
    with Keys(store, "holders", lease=60) as keys:
        first = keys.hold("a", b"x")
        jump_in_the_store(keys, store, -3600)
        with pytest.raises(KeyInUse):
            keys.hold("a", b"x")
        first.finish(b"first")
        assert keys.hold("a", b"x").result == b"first"


def test_after_its_time_a_key_is_a_new_one(store: str):
    with Keys(store, "holders", lease=0.5, keep=timedelta(seconds=2)) as keys:
        with keys.hold("a", b"x") as held:
            held.result = b"first"
        assert keys.hold("a", b"x").result == b"first"
        time.sleep(2.2)
        with keys.hold("a", b"another request") as held:
            assert (held.fresh, held.attempts, held.request) == (True, 1, None)
            assert held.age < 2


def test_what_was_put_down_is_there_for_the_next_attempt(keys: Keys):
    with pytest.raises(ZeroDivisionError), keys.hold("a", b"x") as held:
        assert held.request is None
        held.remember(b"POST /charges")
        raise ZeroDivisionError
    time.sleep(0.3)
    with keys.hold("a", b"x") as held:
        assert held.request == b"POST /charges"
        assert held.age >= 0.3


# ---------------------------------------------------------------- SQL alone


def test_pruning_removes_what_is_over_and_what_is_not_stays(url: str):
    with Keys(url, "holders", lease=2.0, keep=timedelta(seconds=2.5)) as keys, Keys(url, "long") as long:
        for number in range(25):
            with keys.hold(str(number), b"x"):
                pass
        long.hold("kept", b"x").finish()
        working = keys.hold("working", b"x")
        time.sleep(2.7)
        assert long.prune(batch=10) == 25
        assert once.prune(url, timedelta(days=1)) == 0
        assert not long.hold("kept", b"x").fresh
        working.finish()


@pytest.mark.parametrize("commits", [True, False])
def test_a_result_in_the_effect_s_own_transaction_is_there_with_it_or_not_at_all(url: str, commits: bool):
    with Keys(url, "api", lease=0.5) as keys, closing(connect(url)) as db:
        db.execute("create table charges (dollars integer)")
        db.commit()
        held = keys.hold("a", b"x")
        db.execute("insert into charges values (50)")
        held.finish(b"201", connection=db)
        if commits:
            db.commit()
        else:
            db.rollback()
        assert held.settled() is commits
        again = keys.hold("a", b"x", wait=10)
        assert (again.fresh, again.result) == ((False, b"201") if commits else (True, b""))
        assert db.execute("select count(*) from charges").fetchone()[0] == (1 if commits else 0)


def test_a_late_holder_s_transaction_is_told_before_it_commits(url: str):
    with Keys(url, "api", lease=0.3) as keys, closing(connect(url)) as db:
        first = keys.hold("a", b"x")
        keys._let_go(first)  # its process sleeps: nothing renews
        keys.hold("a", b"x", wait=10).finish(b"second")
        with pytest.raises(KeyLost):
            first.finish(b"first", connection=db)
        db.rollback()
        assert keys.hold("a", b"x").result == b"second"


def test_a_connection_without_a_transaction_or_of_another_store_is_refused(url: str, tmp_path: Path):
    with Keys(url, "api") as keys, closing(connect(url)) as db:
        held = keys.hold("a", b"x")
        if url.startswith("sqlite"):
            db.isolation_level = None
        else:
            db.autocommit = True
        with pytest.raises(ConfigurationError, match="commits each statement by itself"):
            held.finish(connection=db)
        if not url.startswith("sqlite"):
            with closing(connect(f"sqlite:///{tmp_path / 'other.db'}")) as other:
                with pytest.raises(ConfigurationError, match="leads to SQLite"):
                    held.finish(connection=other)
        held.finish()


def test_tables_of_the_first_version_are_brought_to_this_one_with_what_is_in_them(url: str):
    with closing(connect(url)) as db:
        db.execute("drop table brokerkit_keys")
        db.execute("update brokerkit_version set version = 1")
        db.execute("insert into brokerkit_inbox (consumer, message_id) values ('ledger', 'evt-1')")
        db.commit()
        with pytest.raises(ConfigurationError, match="of version 1"):
            Keys(url, "api")
        assert once.init(url) == 1
        with Keys(url, "api") as keys:
            assert keys.hold("a", b"x").fresh
        assert db.execute("select count(*) from brokerkit_inbox").fetchone()[0] == 1


def test_tables_that_vanish_are_an_error_that_says_what_to_run(url: str):
    with Keys(url, "api") as keys, closing(connect(url)) as db:
        db.execute("drop table brokerkit_keys")
        db.commit()
        with pytest.raises(NotFound, match="once init"):
            keys.hold("a", b"x")


# ---------------------------------------------------------------- stores that die, or forget


@pytest.mark.parametrize("name", ["postgresql", "valkey"])
def test_a_store_that_is_killed_and_restarted_in_the_middle_keeps_keys_and_holders(name: str):
    made: LocalBroker = target(name)
    made.provision()
    with temporary_directory() as directory:
        try:
            made.start(directory)
            if name == "postgresql":
                once.init(made.url())
            with Keys(made.url(), "api", lease=20, timeout=30) as keys:
                keys.hold("before", b"x").finish(b"answer")
                held = keys.hold("during", b"x")
                made.kill()
                restart = threading.Timer(1.0, made.restart)
                restart.start()
                held.finish(b"late")
                restart.join()
                assert keys.hold("before", b"x").result == b"answer"
                assert keys.hold("during", b"x").result == b"late"
                made.kill()
                started = time.monotonic()
                keys._store._timeout = 1.0
                with pytest.raises(ConnectionLost, match=r"cannot be reached|gave no answer|was lost"):
                    keys.hold("never", b"x")
                assert time.monotonic() - started < 20
        finally:
            made.stop()


@pytest.fixture
def server() -> Iterator[tuple[str, Any]]:
    """A Valkey whose settings may be changed, and a client of it."""
    made = target("valkey")
    made.provision()
    with temporary_directory() as directory:
        try:
            made.start(directory)
            with closing(client.Valkey.from_url(made.url())) as raw:
                yield made.url(), raw
        finally:
            made.stop()


def test_a_valkey_that_may_forget_weakens_the_claim_or_is_refused(server: tuple[str, Any]):
    url, raw = server
    with Keys(url, "api") as keys:
        assert keys.durability.survives == "power_loss"
        assert keys.claim.duplicate == "never"
    raw.config_set("appendfsync", "everysec")
    with Keys(url, "api") as keys:
        assert keys.durability.survives == "process_kill"
        assert keys.claim.duplicate == "possible"
        assert "appendfsync is everysec" in keys.claim.condition
    raw.config_set("appendonly", "no")
    with Keys(url, "api") as keys:
        assert keys.durability.survives == "nothing"
        assert "appendonly is no" in keys.claim.condition
    raw.config_set("maxmemory-policy", "volatile-ttl")
    with Keys(url, "api"):
        pass  # no limit: nothing is evicted
    raw.config_set("maxmemory", "100mb")
    with pytest.raises(
        ConfigurationError, match=r"maxmemory-policy is volatile-ttl.*set maxmemory-policy to noeviction"
    ):
        Keys(url, "api")


def test_a_valkey_whose_memory_is_full_says_so_and_goes_on_when_there_is_room(server: tuple[str, Any]):
    url, raw = server
    with Keys(url, "api", timeout=1.0) as keys:
        keys.hold("before", b"x").finish(b"kept")
        raw.config_set("maxmemory", "1")
        with pytest.raises(ConnectionLost, match=r"gave no answer for 1 s.*maxmemory"):
            keys.hold("a", b"x")
        raw.config_set("maxmemory", "0")
        assert keys.hold("a", b"x").fresh
        assert keys.hold("before", b"x").result == b"kept"


def test_a_user_who_may_not_write_is_told_so(server: tuple[str, Any]):
    url, raw = server
    raw.execute_command("ACL SETUSER reader on >word ~other:* +@all")
    with Keys(url.replace("://", "://reader:word@"), "api") as keys:
        with pytest.raises(AccessRefused, match="does not allow the user"):
            keys.hold("a", b"x")


def test_a_valkey_with_replicas_weakens_the_claim_and_a_replica_is_refused(server: tuple[str, Any]):
    url, _ = server
    second = target("valkey")
    second.provision()
    with temporary_directory() as directory:
        try:
            second.start(directory)
            with closing(client.Valkey.from_url(second.url())) as raw:
                raw.replicaof(*url.partition("://")[2].partition("/")[0].split(":"))

            def claimed() -> bool:
                with Keys(url, "api") as keys:
                    return "a failover to one forgets" in keys.claim.condition and keys.claim.duplicate == "possible"

            assert within(20, claimed)
            with pytest.raises(ConfigurationError, match="is a replica"):
                Keys(second.url(), "api")
        finally:
            second.stop()


def test_a_valkey_that_wants_a_password_refuses_by_name_and_says_none(server: tuple[str, Any]):
    url, raw = server
    raw.config_set("requirepass", "hunter2")
    with pytest.raises(AccessRefused, match="refuses the user"):
        Keys(url, "api")
    with pytest.raises(AccessRefused) as raised:
        Keys(url.replace("://", "://:wrong-word@"), "api")
    assert "wrong-word" not in str(raised.value)


def test_the_address_may_say_redis(valkey: TestBroker):
    with Keys(valkey.url.replace("valkey:", "redis:"), "another") as keys:
        assert keys.hold("a", b"x").fresh


# ---------------------------------------------------------------- bad input


def test_closed_keys_say_so_and_leave_what_is_held_to_its_lease(store: str):
    keys = Keys(store, "holders", lease=0.5)
    keys.hold("a", b"x")
    keys.close()
    keys.close()
    with pytest.raises(Closed):
        keys.hold("a", b"x")
    with Keys(store, "holders", lease=0.5) as others:
        assert others.hold("a", b"x", wait=10).fresh


@pytest.mark.parametrize("key", ["x" * 256, "ü" * 128, "", "nul\0inside", "lone\ud800surrogate", 7])
def test_a_key_that_cannot_be_kept_is_refused(keys: Keys, key: Any):
    with pytest.raises(ConfigurationError, match="key"):
        keys.hold(key, b"x")


def test_the_longest_and_strangest_keys_are_kept(keys: Keys):
    for key in ["x" * 255, "'; drop table brokerkit_keys; --", "{a}:b c\n", "中" * 85]:
        keys.hold(key, b"x").finish(key.encode())
        assert keys.hold(key, b"x").result == key.encode()


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("valkey://me:hunter2@127.0.0.1:9/0", ConnectionLost, "gave no answer"),
        ("valkey://127.0.0.1:9/0?colour=red", ConfigurationError, "no URL that Valkey's client takes"),
        ("postgresql://me:hunter2@127.0.0.1:9/books", ConnectionLost, "cannot be reached"),
        ("sqlite:///nowhere.db", NotFound, "once init"),
        ("mysql://me:hunter2@127.0.0.1/books", ConfigurationError, "no store serves mysql://"),
    ],
)
def test_a_store_that_cannot_be_had_says_why_and_no_password(url: str, error: type[Exception], words: str):
    with pytest.raises(error, match=words) as raised:
        Keys(url, "api", timeout=0.5)
    assert "hunter2" not in str(raised.value)


# ---------------------------------------------------------------- calls


def test_a_caller_killed_after_the_remote_effect_is_followed_by_the_same_call(store: str):
    requests: list[tuple[str | None, bytes]] = []
    came = threading.Event()

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.headers["Idempotency-Key"], body))
            if not came.is_set():
                came.set()  # the effect is done, and its caller will not live to hear of it
                self.rfile.read(1)
                return
            said = f"charged {len(set(requests))}".encode()
            self.send_response(201)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as service:
        serving = threading.Thread(target=service.serve_forever, args=(0.05,))
        serving.start()
        words = [sys.executable, str(HOLDER.with_name("caller.py")), store, f"http://127.0.0.1:{service.server_port}/"]
        first = subprocess.Popen(words)
        try:
            assert came.wait(30)
            first.kill()
            first.wait(10)
            outputs = [subprocess.run(words, capture_output=True, text=True, timeout=60).stdout for _ in range(2)]
        finally:
            first.kill()
            service.shutdown()
            serving.join(10)
    assert outputs == ["charged 1\n"] * 2
    assert len(requests) == 2
    assert requests[0] == requests[1]
