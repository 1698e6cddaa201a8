"""Journals read while they are written: whole lines only, each once, and answers that agree with what is there."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from brokerkit_conformance.actors.supervise import ActorFailed, ending_all
from brokerkit_conformance.history import Journal
from brokerkit_conformance.tail import Tail


def test_what_is_asked_of_it_agrees_with_a_walk_through_all_events(tmp_path: Path) -> None:
    tail, chance = Tail(tmp_path), random.Random(1)
    journals = [Journal(tmp_path / f"consumer-{n}.jsonl", f"consumer-{n}") for n in range(3)]
    for _ in range(20):
        for _ in range(30):
            op, type = chance.choice(["receive", "effect", "ack"]), chance.choice(["ok", "invoke"])
            subscription = chance.choice([{}, {"subscription": "a"}, {"subscription": "b"}])
            chance.choice(journals).write(op, type, f"m-{chance.randrange(40)}", **subscription)
        events = tail.refresh()
        for name in (None, "a", "b"):
            wanted = [e for e in events if e.op == "effect" and (name is None or e.get("subscription") == name)]
            assert tail.ids("effect", subscription=name) == {e.id for e in wanted}
            assert tail.ids("effect", "ok", subscription=name) == {e.id for e in wanted if e.type == "ok"}
        assert tail.count("ack") == sum(e.op == "ack" for e in events)
        assert tail.count("ack", "ok") == sum((e.op, e.type) == ("ack", "ok") for e in events)
        by = Counter((e.actor, e.op, e.type) for e in events)
        assert all(tail.count_by(*key) == count for key, count in by.items())
        assert tail.by("consumer-1", "receive") == [e for e in events if (e.actor, e.op) == ("consumer-1", "receive")]
    assert len(tail.events) == 600
    for journal in journals:
        journal.close()


def test_a_line_that_is_half_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    with Journal(tmp_path / "whole.jsonl", "producer-1") as journal:
        line = journal.write("note").line()
    place, tail = tmp_path / "half.jsonl", Tail(tmp_path)
    place.write_bytes(line + line[:20])
    assert len(tail.refresh()) == 2
    place.write_bytes(line + line)
    assert len(tail.refresh()) == len(tail.refresh()) == 3


def test_events_do_not_change_afterwards_and_ids_grow(tmp_path: Path) -> None:
    tail = Tail(tmp_path)
    with Journal(tmp_path / "p.jsonl", "producer-1") as journal:
        journal.write("send", "ok", "a")
        tail.refresh()
        before = tail.ids("send"), tail.by("producer-1", "send")
        journal.write("send", "ok", "b")
        tail.refresh()
    assert (before[0], [event.id for event in before[1]]) == ({"a", "b"}, ["a"])


def test_waiting_ends_when_the_run_is_interrupted(tmp_path: Path) -> None:
    with ending_all(), pytest.raises(ActorFailed, match="interrupted"):
        Tail(tmp_path).until(lambda: False, 60.0)
    assert not Tail(tmp_path).until(lambda: False, 0.0)
