"""Hand-written histories of transactions: torn, aborted and read, committed without their offsets."""

from __future__ import annotations

import pytest
from brokerkit_conformance import atomic, checkers
from brokerkit_conformance.checkers import Kind
from brokerkit_conformance.verdict import Verdict, judge

from .histories import Script

OUT, TWO = "out", "two"


class Copies(Script):
    """A script of one copier; each call a step of one transaction."""

    def begin(self, txn: str, *ids: str, outs: tuple[str, ...] = (OUT,), place: str = "in/0@") -> Copies:
        self.add("txn", "invoke", actor=txn.partition(":")[0], txn=txn)
        for id in ids:
            self.add("take", "ok", id, txn=txn, position=f"{place}{id}")
            for out in outs:
                self.add("put", "ok", id, txn=txn, topic=out)
        return self

    def end(self, txn: str, end: str | None = "ok", *, asked: bool = True) -> Copies:
        if asked:
            self.add("commit", "invoke", txn=txn)
        if end is not None:
            self.add("txn", end, txn=txn)
        return self

    def read(self, txn: str, *ids: str, topic: str = OUT) -> Copies:
        for id in ids:
            self.add("receive", "ok", id, actor="reader-1", txn=txn, topic=topic, subscription="read")
        return self


def kinds(script: Script) -> list[str]:
    return sorted(str(anomaly.kind) for anomaly in checkers.transactions(script.history))


def test_a_committed_transaction_that_is_seen_as_a_whole_is_right() -> None:
    script = Copies().begin("c:1", "a", "b", outs=(OUT, TWO)).end("c:1")
    script.read("c:1", "a", "b").read("c:1", "a", "b", topic=TWO).drained()
    assert kinds(script) == []


def test_an_output_of_an_aborted_transaction_that_was_read_is_an_aborted_read() -> None:
    script = Copies().begin("c:1", "a").end("c:1", "fail").read("c:1", "a")
    (found,) = checkers.transactions(script.history)
    assert (found.kind, found.id, found.subscription) == (Kind.ABORTED_READ, "a", "read")
    assert "c:1 was aborted" in found.detail


def test_a_transaction_whose_commit_nobody_asked_for_is_aborted_with_its_process() -> None:
    assert kinds(Copies().begin("c:1", "a").read("c:1", "a")) == ["aborted_read"]
    assert kinds(Copies().begin("c:1", "a").drained()) == []


def test_an_aborted_transaction_that_runs_again_is_judged_by_the_second_run() -> None:
    script = Copies().begin("c:1", "a").end("c:1", "fail").begin("c:2", "a").end("c:2").read("c:2", "a").drained()
    assert kinds(script) == []


@pytest.mark.parametrize("end", ["info", None])
def test_a_transaction_of_unknown_end_may_be_there_or_not_but_as_a_whole(end: str | None) -> None:
    def of() -> Copies:
        return Copies().begin("c:1", "a", "b").end("c:1", end)

    assert kinds(of().drained()) == []
    assert kinds(of().read("c:1", "a", "b").drained()) == []
    assert kinds(of().read("c:1", "a").drained()) == ["torn"]


def test_a_transaction_is_torn_between_topics_too() -> None:
    script = Copies().begin("c:1", "a", outs=(OUT, TWO)).end("c:1").read("c:1", "a").drained()
    (found,) = checkers.transactions(script.history)
    assert (found.kind, found.detail) == (
        Kind.TORN,
        "1 of the 2 outputs of c:1 (committed) were never seen, the first in two",
    )


def test_a_committed_transaction_that_nobody_ever_sees_is_torn_off_whole() -> None:
    assert kinds(Copies().begin("c:1", "a").end("c:1").drained()) == ["torn"]


def test_nothing_is_torn_before_everything_was_read() -> None:
    script = Copies().begin("c:1", "a", "b").end("c:1").read("c:1", "a")
    assert kinds(script) == []
    assert kinds(script.drained("deadline")) == []


def test_one_copy_in_two_visible_transactions_came_without_its_offsets() -> None:
    script = Copies().begin("c:1", "a").end("c:1").begin("d:1", "a").end("d:1").read("c:1", "a").read("d:1", "a")
    (found,) = checkers.transactions(script.history)
    assert (found.kind, found.id) == (Kind.WITHOUT_OFFSETS, "a")
    assert found.detail == "in/0@a was taken in by c:1 and d:1, and the outputs of both are visible"


def test_two_stored_copies_of_one_message_are_two() -> None:
    script = Copies().begin("c:1", "a").end("c:1").begin("d:1", "a", place="in/1@").end("d:1")
    assert kinds(script.read("c:1", "a").read("d:1", "a").drained()) == []


def test_what_a_peeker_saw_counts_only_where_it_was_aborted() -> None:
    script = Copies().begin("c:1", "a").end("c:1", "fail").begin("c:2", "a").end("c:2")
    script.add("peek", "ok", "a", txn="c:1").add("peek", "ok", "a", txn="c:2")
    assert atomic.peeked(script.history, atomic.lives(script.history)) == {"c:1"}
    assert kinds(script) == []


@pytest.mark.parametrize("end", ["fail", "info"])
def test_a_torn_transaction_or_aborted_read_is_a_violation_whatever_was_claimed(end: str) -> None:
    script = Copies(claim={"loss": "possible", "duplicate": "possible", "condition": "anything goes"})
    script.send("a").begin("c:1", "a", "b").end("c:1", end).read("c:1", "a").effect("a", "reader-1").drained()
    judgement = judge(script.history)
    assert judgement.verdict is Verdict.VIOLATED
    assert ("aborted read" if end == "fail" else "torn transaction") in judgement.why
