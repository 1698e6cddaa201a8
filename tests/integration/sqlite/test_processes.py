"""The sqlite broker shared by processes that are really killed, at any line, again and again."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from brokerkit_sqlite.driver import SqliteDriver
from brokerkit_sqlite.settings import SqliteSettings

from brokerkit.driver import Subscription
from brokerkit.plugins import Url

pytestmark = pytest.mark.integration

ACTORS = Path(__file__).with_name("actors.py")
SEED = 20261124


class Actor:
    """One process; what it said is in a file, so that nothing blocks on a pipe."""

    def __init__(self, said: Path, *words: object) -> None:
        self.said = said
        with said.open("wb") as out:
            self.process = subprocess.Popen([sys.executable, str(ACTORS), *map(str, words)], stdout=out)

    def lines(self, first: str) -> list[list[str]]:
        found = [line.split() for line in self.said.read_text().splitlines()]
        return [words[1:] for words in found if words[0] == first]

    def kill(self) -> None:
        self.process.kill()
        assert self.process.wait(10) in (-signal.SIGKILL, 0)


class Stage:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "queue.db"
        self.driver = SqliteDriver(Url("sqlite", "", f"/{self.file}"), SqliteSettings())
        self.actors: list[Actor] = []

    def declare(self, topic: str, *names: str) -> None:
        self.driver.declare(topic, [Subscription(name) for name in names], {})

    def start(self, what: str, *words: object) -> Actor:
        self.actors.append(Actor(self.directory / f"said-{len(self.actors)}", what, self.file, *words))
        return self.actors[-1]

    def said(self, first: str) -> list[list[str]]:
        return [words for actor in self.actors for words in actor.lines(first)]

    def drained(self, *subscriptions: str) -> Callable[[], bool]:
        return lambda: not any(self.driver.depth("orders", name) for name in subscriptions)

    def check_file(self) -> None:
        with closing(sqlite3.connect(self.file)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def close(self) -> None:
        for actor in self.actors:
            if actor.process.poll() is None:
                actor.process.kill()
            actor.process.wait(10)
        self.driver.close(1.0)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


def wait_for(what: str, holds: Callable[[], object], timeout: float = 40.0) -> None:
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"after {timeout} s still not: {what}"
        time.sleep(0.02)


def test_competing_processes_share_without_loss_or_duplicate(stage):
    stage.declare("orders", "main", "other")
    consumers = [stage.start("consume", name, 20, "nack") for name in ("main", "main", "main", "other")]
    producers = [stage.start("produce", f"p{number}", 1000, 50, "at_least_once") for number in range(2)]
    wait_for("all sent", lambda: len(stage.said("done")) == 2)
    wait_for("drained", stage.drained("main", "other"))
    sent = {f"p{number}-{index}" for number in range(2) for index in range(1000)}
    wait_for("all acks told", lambda: all(len(c.lines("acked")) == len(c.lines("got")) for c in consumers))
    settled = Counter(id for consumer in consumers[:3] for id, end in consumer.lines("acked") if end == "settled")
    effects = Counter({id: count for id, count in settled.items() if not id.startswith("given-back")})
    assert effects == Counter(sent)
    assert {id for id, _ in consumers[3].lines("got")} == sent
    assert all(process.process.poll() in (None, 0) for process in [*consumers, *producers])


def test_confirmed_messages_survive_kills_of_producers_at_random_moments(stage):
    stage.declare("orders", "main")
    chance = random.Random(SEED)
    for round in range(8):
        actor = stage.start("produce", f"p{round}", 1_000_000, chance.choice([1, 10, 200]), "at_least_once")
        wait_for("a first confirm", lambda actor=actor: actor.said.stat().st_size > 0)
        time.sleep(chance.uniform(0, 0.2))
        actor.kill()
    confirmed = {id for (id,) in stage.said("ok")}
    with closing(sqlite3.connect(stage.file)) as raw:
        stored = Counter(id for (id,) in raw.execute("SELECT id FROM published WHERE topic = 'orders'"))
    assert confirmed
    assert confirmed <= set(stored), f"lost, seed {SEED}: {sorted(confirmed - set(stored))[:5]}"
    assert max(stored.values()) == 1
    assert stage.driver.depth("orders", "main") == len(stored)
    stage.check_file()


def test_a_killed_batch_is_stored_whole_or_not_at_all(stage):
    stage.declare("orders", "main")
    chance = random.Random(SEED)
    for round in range(5):
        actor = stage.start("produce", f"p{round}", 1_000_000, 500, "at_least_once")
        wait_for("a first confirm", lambda actor=actor: actor.said.stat().st_size > 0)
        time.sleep(chance.uniform(0, 0.1))
        actor.kill()
    assert stage.driver.depth("orders", "main") % 500 == 0


def test_a_producer_that_starts_over_exactly_once_stores_each_id_once(stage):
    stage.declare("orders", "main")
    chance = random.Random(SEED)
    for _ in range(5):
        actor = stage.start("produce", "p", 1_000_000, 20, "exactly_once")
        wait_for("a first confirm", lambda actor=actor: actor.said.stat().st_size > 0)
        time.sleep(chance.uniform(0, 0.2))
        actor.kill()
    confirmed = {id for (id,) in stage.said("ok")}
    with closing(sqlite3.connect(stage.file)) as raw:
        stored = Counter(id for (id,) in raw.execute("SELECT id FROM published WHERE topic = 'orders'"))
    assert confirmed <= set(stored)
    assert max(stored.values()) == 1


def test_killed_consumers_lose_nothing_and_only_what_they_held_comes_twice(stage):
    stage.declare("orders", "main", "other")
    chance = random.Random(SEED)
    producer = stage.start("produce", "p", 3000, 50, "at_least_once")
    consumers = [stage.start("consume", name, 25) for name in ("main", "main", "other")]
    for _ in range(10):
        victim = chance.randrange(3)
        wait_for("ready", lambda victim=victim: consumers[victim].lines("ready"))
        time.sleep(chance.uniform(0, 0.15))
        consumers[victim].kill()
        consumers[victim] = stage.start("consume", ("main", "main", "other")[victim], 25)
    wait_for("all sent", lambda: producer.lines("done"))
    wait_for("drained", stage.drained("main", "other"))
    sent = {f"p-{index}" for index in range(3000)}
    names = {actor: actor.process.args[4] for actor in stage.actors if actor is not producer}
    for name in ("main", "other"):
        mine = [actor for actor in names if names[actor] == name]
        assert {id for actor in mine for id, _ in actor.lines("got")} == sent, f"lost by {name}, seed {SEED}"
        acked = Counter(id for actor in mine for id, end in actor.lines("acked") if end == "settled")
        assert not acked or max(acked.values()) == 1, f"settled twice, seed {SEED}"
        again = {id for actor in mine for id, attempt in actor.lines("got") if int(attempt) > 1}
        assert not again & set_of_first_acks(mine), f"handed out after its ack, seed {SEED}"
    stage.check_file()


def set_of_first_acks(actors: list[Actor]) -> set[str]:
    """Ids whose first attempt was settled: nobody may have got them again."""
    acked: set[str] = set()
    for actor in actors:
        first = {id for id, attempt in actor.lines("got") if attempt == "1"}
        acked |= first & {id for id, end in actor.lines("acked") if end == "settled"}
    return acked


def test_a_frozen_consumer_is_taken_over_and_its_late_ack_is_lost(stage):
    stage.declare("orders", "main")
    frozen = stage.start("consume", "main", 1)
    wait_for("ready", lambda: frozen.lines("ready"))
    producer = stage.start("produce", "p", 2000, 20, "at_least_once")
    try:
        wait_for("some got", lambda: len(frozen.lines("got")) > 20)
        held = []
        deadline = time.monotonic() + 20
        while not held:
            assert time.monotonic() < deadline, "never frozen while it held a message"
            frozen.process.send_signal(signal.SIGSTOP)
            time.sleep(0.01)
            got, acked = frozen.lines("got"), {id for id, _ in frozen.lines("acked")}
            held = [id for id, _ in got if id not in acked]
            if not held or locked(stage.file) or not leased(stage.file):
                held = []
                frozen.process.send_signal(signal.SIGCONT)
                time.sleep(0.003)
        other = stage.start("consume", "main", 50)
        wait_for("the other takes over", lambda: held[0] in {id for id, _ in other.lines("got")})
        wait_for("drained", lambda: producer.lines("done") and stage.drained("main")())
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    wait_for("the late ack", lambda: [held[0], "lost"] in frozen.lines("acked"))
    assert [held[0], "settled"] in other.lines("acked")


def leased(file: Path) -> int:
    with closing(sqlite3.connect(file, timeout=0)) as raw:
        try:
            count: int = raw.execute("SELECT count(*) FROM deliveries WHERE lease IS NOT NULL").fetchone()[0]
        except sqlite3.OperationalError:  # frozen where nobody can read, so not where it is wanted
            return 0
        return count


def locked(file: Path) -> bool:
    with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as raw:
        try:
            raw.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        raw.execute("ROLLBACK")
        return False


def test_a_copier_killed_in_the_middle_of_transactions_copies_each_message_once(stage):
    stage.declare("orders", "main")
    stage.declare("bills", "main")
    chance = random.Random(SEED)
    stage.start("produce", "p", 2000, 100, "at_least_once")
    wait_for("all sent", lambda: stage.said("done"))
    for _ in range(8):
        copier = stage.start("copy", chance.choice([1, 10, 50]))
        wait_for("ready", lambda copier=copier: copier.lines("commit") or copier.process.poll() is not None)
        time.sleep(chance.uniform(0, 0.05))
        copier.kill()
    stage.start("copy", 100)
    wait_for("drained", stage.drained("main"))
    with closing(sqlite3.connect(stage.file)) as raw:
        copies = Counter(id for (id,) in raw.execute("SELECT id FROM published WHERE topic = 'bills'"))
    assert copies == Counter(f"p-{index}" for index in range(2000)), f"seed {SEED}"
    stage.check_file()


def test_children_that_inherit_a_connection_harm_nobody(stage):
    stage.declare("orders", "main")
    forker = stage.start("fork")
    assert forker.process.wait(60) == 0
    assert forker.lines("child") == [["0"]] * 30
    [[confirmed]] = forker.lines("confirmed")
    assert stage.driver.depth("orders", "main") == int(confirmed)
    stage.check_file()


def test_processes_that_create_the_file_at_once_all_find_it_whole(stage):
    program = (
        "import sys, brokerkit\n"
        "with brokerkit.connect(sys.argv[1]) as broker:\n"
        "    broker.declare('orders', ['main'])\n"
        "    broker.declare(sys.argv[2], ['main'], attempts=3)\n"
    )
    url = f"sqlite:///{stage.file}"
    started = [subprocess.Popen([sys.executable, "-c", program, url, f"topic-{number}"]) for number in range(6)]
    try:
        assert [process.wait(60) for process in started] == [0] * 6
    finally:
        for process in started:
            process.kill()
            process.wait(10)
    for number in range(6):
        assert stage.driver.depth(f"topic-{number}", "main") == 0
        assert stage.driver.depth(f"topic-{number}-dead", "dead") == 0


def test_the_log_beside_the_file_stays_small_under_load(stage):
    stage.declare("orders", "main")
    stage.start("consume", "main", 100)
    stage.start("produce", "p", 20_000, 100, "at_least_once")
    log = Path(f"{stage.file}-wal")
    largest = 0

    def sent() -> bool:
        nonlocal largest
        largest = max(largest, log.stat().st_size if log.exists() else 0)
        return bool(stage.said("done"))

    wait_for("all sent", sent)
    wait_for("drained", stage.drained("main"))
    assert largest < 32 * 1024 * 1024
