"""SIGKILL at a chosen line of the driver: whatever was told before stays true, the rest happened whole or not at all.

A forked child runs one story (send, hand out, ack, nack, reject, extend, a transaction) and kills itself as the n-th
line of brokerkit_sqlite begins; n walks over the whole story.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from brokerkit_sqlite import driver as driver_module
from brokerkit_sqlite.driver import SqliteDriver
from brokerkit_sqlite.settings import SqliteSettings

from brokerkit.driver import Nack, Reject, Subscription
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message
from brokerkit.plugins import Url

pytestmark = pytest.mark.integration

PIECES = 8
PACKAGE = str(Path(driver_module.__file__).parent)


class Silent:
    def assigned(self, positions):
        return {}

    def __getattr__(self, name):
        return lambda *details: None


def open_driver(file: Path) -> SqliteDriver:
    return SqliteDriver(Url("sqlite", "", f"/{file}"), SqliteSettings(lease_seconds=0.1))


def story(file: Path, tell: Callable[[str], None]) -> None:
    """Tells each fact as soon as the driver has told it."""
    driver = open_driver(file)
    driver.declare("orders", [Subscription("main", dead_letter="graves"), Subscription("other")], {})
    driver.declare("bills", [Subscription("main")], {})
    sender = driver.sender(
        "orders", Guarantee.EXACTLY_ONCE, lambda found: [tell(f"confirmed {one.first}") for one in found], Silent()
    )
    for number in range(4):
        sender.send([Message(b"x", id=str(number))])
    facts: dict[object, str] = {}

    def settled(settlements):
        for tokens, end, _ in settlements:
            assert end == "settled"
            for token in tokens:
                tell(facts[token])

    receiver = driver.receiver(["orders"], Subscription("main"), Guarantee.AT_LEAST_ONCE, settled, Silent())
    one, two, three, _ = receiver.receive(10, 1.0)
    for received, fact in ((one, "acked 0"), (two, "nacked 1"), (three, "rejected 2")):
        facts[received.token] = fact
    receiver.extend([one.token, two.token, three.token], 0.1)
    receiver.settle([one.token])
    receiver.settle([], [Nack(two.token)])
    receiver.settle([], [], [Reject(three.token, "no good")])
    receiver.close(1.0)
    transactor = driver.transactor(["orders"], Subscription("other"), instance="one")
    transactor.begin()
    [first] = transactor.receive(1, 1.0)
    transactor.send("bills", Message(b"x", id=first.id))
    transactor.settle([first.token])
    transactor.commit()
    tell("copied 0")
    transactor.close(1.0)
    sender.close(1.0)
    driver.close(1.0)


def run_killed_at(line: int, file: Path, facts: Path) -> tuple[int, list[str]]:
    """The child's wait status and the facts it told."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            out = os.open(facts, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            left = line

            def trace(frame, event, _):
                nonlocal left
                if not frame.f_code.co_filename.startswith(PACKAGE):
                    return None
                if event == "line":
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                return trace

            sys.settrace(trace)
            story(file, lambda fact: os.write(out, f"{fact}\n".encode()) and None)
            sys.settrace(None)
            os.write(out, f"lines {line - left}\n".encode())
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return status, facts.read_text().splitlines() if facts.exists() else []


def judge(file: Path, facts: list[str]) -> None:
    """Every fact told is true in the file, and no message is in two places or in none."""
    with closing(sqlite3.connect(file)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if not raw.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            assert facts == []
            return
    driver = open_driver(file)
    driver.declare("orders", [Subscription("main", dead_letter="graves"), Subscription("other")], {})
    driver.declare("bills", [Subscription("main")], {})
    found = {
        (topic, name): drain(driver, topic, name)
        for topic, name in (("orders", "main"), ("graves", "dead"), ("orders", "other"), ("bills", "main"))
    }
    driver.close(1.0)
    main, dead = found["orders", "main"], found["graves", "dead"]
    other, bills = found["orders", "other"], found["bills", "main"]
    told = {tuple(fact.split()) for fact in facts}
    confirmed = {id for what, id in told if what == "confirmed"}
    sent = set(other) | set(bills)
    assert len(other) + len(bills) == len(sent), "a transaction happened by half"
    assert confirmed <= sent <= {str(int(id) + 1) for id in confirmed} | confirmed | {"0"}
    assert len(main) + len(dead) == len({*main, *dead}), "a message is alive and dead"
    gone = sent - set(main) - set(dead)
    assert gone <= {"0"}, f"lost: {gone}"
    if ("acked", "0") in told:
        assert gone == {"0"}
    if ("nacked", "1") in told:
        assert "1" in main
    if ("rejected", "2") in told:
        assert dead == ["2"]
    if ("copied", "0") in told:
        assert bills == ["0"]


def drain(driver: SqliteDriver, topic: str, name: str) -> list[str]:
    settled: list[object] = []
    receiver = driver.receiver([topic], Subscription(name), Guarantee.AT_LEAST_ONCE, settled.extend, Silent())
    ids = []
    while driver.depth(topic, name):
        for received in receiver.receive(10, 5.0):
            ids.append(received.id)
            receiver.settle([received.token])
    receiver.close(1.0)
    return ids


def walk(directory: Path, step: int, start: int) -> None:
    status, facts = run_killed_at(0, directory / "whole.db", directory / "whole")
    assert status == 0
    *told, lines = facts
    assert len(told) == 8
    judge(directory / "whole.db", told)
    count = int(lines.split()[1])
    assert count > 500
    for line in range(start, count + 1, step):
        file = directory / f"{line}.db"
        status, facts = run_killed_at(line, file, directory / f"{line}.facts")
        assert os.WIFSIGNALED(status), f"line {line} of {count} was not reached"
        try:
            if file.exists():
                judge(file, facts)
        except AssertionError as error:
            raise AssertionError(f"killed at line {line} of {count}, having told {facts}: {error}") from error


def test_killed_at_some_lines_of_the_whole_story(tmp_path):
    walk(tmp_path, 37, 5)


@pytest.mark.prove
@pytest.mark.timeout(400)
@pytest.mark.parametrize("start", range(1, PIECES + 1))
def test_killed_at_every_line_of_the_whole_story(tmp_path, start):
    """Each piece takes every PIECES-th line, from another one on."""
    walk(tmp_path, PIECES, start)
