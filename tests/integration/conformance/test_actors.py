"""Actors are processes that stand at barriers, really die, really stand still, and die with their supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from brokerkit_conformance.actors.supervise import Actor, ActorFailed
from brokerkit_conformance.history import History, Journal

import brokerkit

URL = "sqlite:///{}/queue.db?lease_seconds=1"


class Cast:
    """Starts actors over one sqlite file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = URL.format(directory)
        self.journal = Journal(directory / "supervisor.jsonl", "supervisor")
        self.actors: list[Actor] = []
        with brokerkit.connect(self.url) as broker:
            broker.declare("payments", ["ledger"])

    def producer(self, name: str = "producer-1") -> Actor:
        return self._start(
            "producer", name, topic="payments", guarantee="at_least_once", prefix=name, delivery_timeout=10
        )

    def consumer(self, name: str = "consumer-1", guarantee: str = "at_least_once", **handler: object) -> Actor:
        return self._start(
            "consumer", name, topics=["payments"], subscription="ledger", guarantee=guarantee, handler=handler
        )

    def history(self) -> History:
        return History.load(self.directory)

    def _start(self, module: str, name: str, **spec: object) -> Actor:
        actor = self.start(module, name, **spec)
        actor.wait_ready()
        return actor

    def start(self, role: str, name: str, **spec: object) -> Actor:
        journal = str(self.directory / f"{name}.jsonl")
        whole = {"url": self.url, "actor": name, "journal": journal, **spec}
        actor = Actor(role, whole, self.journal, self.directory)
        self.actors.append(actor)
        return actor


@pytest.fixture
def cast(tmp_path: Path) -> Iterator[Cast]:
    made = Cast(tmp_path)
    yield made
    for actor in made.actors:
        actor.end()
    made.journal.close()


def send(actor: Actor, count: int) -> None:
    actor.command("send", count=count)
    actor.wait_for("DONE")


def until(true: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_every_send_is_journaled_before_and_after(cast: Cast) -> None:
    producer = cast.producer()
    send(producer, 10)
    producer.close()
    history = cast.history()
    assert len(history.of("send", "invoke")) == 10
    assert history.ids("send", "ok") == history.ids("send", "invoke")
    assert all(event.get("position") for event in history.of("send", "ok"))


def test_a_consumer_stands_still_at_its_barrier_until_released(cast: Cast) -> None:
    consumer = cast.consumer(stop_at={"point": "before_ack", "after": 1})
    send(cast.producer(), 3)
    id = consumer.wait_at("before_ack")
    assert cast.history().ids("effect") == {"producer-1-0", "producer-1-1"}
    assert id == "producer-1-1"
    assert "ack" not in [event.op for event in cast.history().trail(id)]
    consumer.release()
    assert until(lambda: len(cast.history().ids("effect")) == 3)
    consumer.close()
    assert {event.get("end") for event in cast.history().of("ack", "ok")} == {"settled"}


def test_a_kill_is_a_kill_and_its_journal_stays_valid(cast: Cast) -> None:
    consumer = cast.consumer(stop_at={"point": "before_processing", "after": 0})
    send(cast.producer(), 1)
    consumer.wait_at("before_processing")
    assert consumer.kill() == -signal.SIGKILL
    assert [event.get("status") for event in cast.history().of("process_end")] == [-9]
    assert cast.history().ids("receive") == {"producer-1-0"}
    assert cast.history().ids("effect") == set()


def test_sigterm_ends_it_in_order_and_what_it_held_goes_back(cast: Cast) -> None:
    consumer = cast.consumer(work=0.05)
    send(cast.producer(), 200)  # ten seconds of work: a busy machine is late to look, and some must be left
    assert until(lambda: len(cast.history().ids("effect")) >= 3)
    assert consumer.terminate() == 0
    done = cast.history().ids("effect")
    assert len(done) < 200
    with brokerkit.connect(cast.url) as broker:
        assert broker.depth("payments", "ledger") == 200 - len(done)


def test_a_frozen_actor_stands_still_and_goes_on(cast: Cast) -> None:
    consumer = cast.consumer(work=0.05)
    send(cast.producer(), 200)
    assert until(lambda: len(cast.history().ids("effect")) >= 2)
    consumer.freeze()
    assert consumer.state() == "T"
    before = len(cast.history())
    time.sleep(0.3)
    assert len(cast.history()) == before
    consumer.thaw()
    assert until(lambda: len(cast.history()) > before)


def test_a_frozen_actor_never_takes_the_whole_file_with_it(cast: Cast) -> None:
    consumer = cast.consumer()
    producer = cast.producer()
    send(producer, 2000)  # it leases and acks all the time, and each is a write to the file
    with brokerkit.connect(f"{cast.url}&busy_timeout=1") as broker:
        for number in range(20):
            consumer.freeze()
            broker.declare(f"others-{number}", ["they"])
            consumer.thaw()
            time.sleep(0.01)


def test_an_actor_that_fails_is_told_with_its_last_words(cast: Cast) -> None:
    actor = cast.start("producer", "producer-9", url="nosuch://broker", guarantee="at_least_once")
    with pytest.raises(ActorFailed, match="no plugin serves nosuch"):
        actor.wait_ready()


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
def test_actors_die_with_a_supervisor_that_is_killed(tmp_path: Path, frozen: bool) -> None:
    program = (
        "import sys, pathlib, time\n"
        "from brokerkit_conformance.actors.supervise import Actor\n"
        "from brokerkit_conformance.history import Journal\n"
        "import brokerkit\n"
        f"place = pathlib.Path({str(tmp_path)!r}); url = {URL.format(tmp_path)!r}\n"
        "with brokerkit.connect(url) as broker: broker.declare('payments', ['ledger'])\n"
        "spec = dict(url=url, actor='consumer-1', journal=str(place / 'c.jsonl'), topics=['payments'],\n"
        "            subscription='ledger', guarantee='at_least_once')\n"
        "actor = Actor('consumer', spec, Journal(place / 's.jsonl', 's'), place); actor.wait_ready()\n"
        f"{'actor.freeze()' if frozen else ''}\n"
        "print(actor.pid, flush=True); time.sleep(60)\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert supervisor.stdout is not None
        line: list[str] = []
        reader = threading.Thread(target=lambda: line.append(supervisor.stdout.readline()))  # type: ignore[union-attr]
        reader.start()
        reader.join(30)
        pid = int(line[0])
        os.kill(supervisor.pid, signal.SIGKILL)
        supervisor.wait()
        assert until(lambda: not Path(f"/proc/{pid}").exists(), 10.0)
    finally:
        supervisor.kill()
        supervisor.wait()
        assert supervisor.stdout is not None
        supervisor.stdout.close()


def test_actors_end_with_their_nursery_and_the_next_has_another(cast: Cast) -> None:
    first = cast.consumer()
    nursery = int(Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert nursery != os.getpid()
    os.kill(nursery, signal.SIGKILL)
    assert first.wait_end(10) == -signal.SIGKILL
    assert until(lambda: not Path(f"/proc/{first.pid}").exists())
    second = cast.consumer("consumer-2")
    send(cast.producer(), 3)
    assert until(lambda: len(cast.history().ids("effect")) == 3)
    second.close()


def test_an_actor_works_in_the_folder_of_its_supervisor(
    cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast.consumer()
    monkeypatch.chdir(tmp_path)
    actor = cast.start("consumer", "consumer-3", url="sqlite:///here.db", topics=["payments"], subscription="ledger")
    assert until(lambda: Path(f"/proc/{actor.pid}/cwd").resolve() == tmp_path.resolve())
