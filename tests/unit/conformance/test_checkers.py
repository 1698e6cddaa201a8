"""Hand-written histories with known anomalies, and properties that hold of every history."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from brokerkit_conformance import checkers
from brokerkit_conformance.checkers import Kind, examine
from brokerkit_conformance.history import Event, History, Journal
from hypothesis import given
from hypothesis import strategies as st

from .histories import Script


def kinds(script: Script) -> list[str]:
    return sorted(str(anomaly.kind) for anomaly in checkers.anomalies(script.history))


def test_a_clean_history_has_no_anomaly() -> None:
    script = Script().send("a").handle("a").send("b").handle("b").drained()
    assert kinds(script) == []


# ---------------------------------------------------------------- lost


def test_a_confirmed_message_without_an_effect_is_lost() -> None:
    (lost,) = checkers.lost(Script().send("a").drained().history)
    assert (lost.id, lost.detail) == ("a", "confirmed, never received by anybody")


def test_a_message_received_and_never_effected_is_lost_at_its_consumer() -> None:
    (lost,) = checkers.lost(Script().send("a").receive("a", subscription="").drained().history)
    assert lost.detail == "confirmed, received by consumer-1#1, never effected"


@pytest.mark.parametrize("end", ["fail", "info", None])
def test_what_was_not_confirmed_is_not_lost(end: str | None) -> None:
    assert checkers.lost(Script().send("a", end).drained().history) == []


def test_nothing_is_lost_before_a_complete_drain() -> None:
    assert checkers.lost(Script().send("a").history) == []
    assert checkers.lost(Script().send("a").drained("deadline").history) == []


def test_a_drain_that_stopped_with_messages_left_is_not_complete() -> None:
    history = Script().send("a").drained("complete", missing=1, depth={"ledger": 2}).history
    assert checkers.lost(history) == []
    assert "2 messages still in the subscription" in examine(history).drain.shortcoming


def test_a_drain_shorter_than_a_redelivery_is_not_complete() -> None:
    script = Script(properties={"redelivery_seconds": 3.0}).send("a").handle("a").drained(seconds=0.5)
    assert examine(script.history).drain.shortcoming == "the drain read for 0.5 s, and a redelivery may take 3 s"
    script = Script(properties={"redelivery_seconds": 3.0}).send("a").handle("a").drained(seconds=4.5)
    assert examine(script.history).drain.complete


def test_at_most_once_every_message_handed_over_is_owed() -> None:
    script = Script(producer_guarantee="at_most_once").send("a", "info", cause="not_asked").send("b", "fail")
    assert [lost.id for lost in checkers.lost(script.drained().history)] == ["a"]


def test_each_subscription_is_owed_every_message() -> None:
    script = Script(subscriptions=["ledger", "mail"]).send("a").handle("a").drained()
    (lost,) = checkers.lost(script.history)
    assert lost.subscription == "mail"


def test_a_dead_letter_is_not_lost() -> None:
    script = Script().send("a").receive("a").add("dead", "ok", "a", "reader", reason="poison").drained()
    assert kinds(script) == []


# ---------------------------------------------------------------- blocked, stalled


def test_stored_and_not_readable_at_the_deadline_is_blocked() -> None:
    script = Script().send("a").add("stored", "ok", "a", position="t/0@1").drained("deadline")
    assert kinds(script) == ["blocked"]
    assert checkers.observed(script.history)["blocked"] == 1


def test_missing_at_the_deadline_is_stalled() -> None:
    assert kinds(Script().send("a").drained("deadline")) == ["stalled"]


def test_a_consumer_that_never_goes_on_after_the_fault_is_stalled() -> None:
    script = Script().send("a").handle("a").send("b").fault("cut", "network", cut=1).add("heal", "ok", within=5)
    script.at += 10
    script.drained().receive("b", "drain#1", drain=True).effect("b", "drain#1")
    script.add("drain_end", "info", reason="complete")
    stalled = [anomaly for anomaly in checkers.anomalies(script.history) if anomaly.kind is Kind.STALLED]
    assert [anomaly.id for anomaly in stalled] == ["b"]


def test_a_consumer_that_goes_on_after_the_fault_is_not_stalled() -> None:
    script = Script().send("a").handle("a").send("b").fault("cut", "network", cut=1).add("heal", "ok", within=5)
    script.at += 10
    assert kinds(script.handle("b").drained()) == []


# ---------------------------------------------------------------- repetition


def test_two_effects_are_a_duplicate() -> None:
    script = Script().send("a").receive("a").effect("a").killed().handle("a", "consumer-2#1", attempt=2).drained()
    (duplicate,) = checkers.duplicated(script.history)
    assert (duplicate.times, duplicate.detail) == (1, "effected 2 times, by consumer-1#1, consumer-2#1")
    assert kinds(script) == ["duplicated", "redelivered"]


def test_one_effect_in_each_of_two_subscriptions_is_no_duplicate() -> None:
    script = Script().send("a").handle("a").handle("a", "consumer-2#1", subscription="mail").drained()
    assert kinds(script) == []


def test_received_twice_and_effected_once_is_only_redelivered() -> None:
    assert kinds(Script().send("a").receive("a").handle("a", attempt=2).drained()) == ["redelivered"]


def test_one_id_at_two_positions_was_stored_twice() -> None:
    script = Script().send("a", attempts=2).handle("a", position="t/0@1").handle("a", position="t/0@2").drained()
    (twice,) = checkers.duplicated_by_producer(script.history)
    assert twice.detail == "stored 2 times: t/0@1, t/0@2"
    assert "false_success" not in kinds(script)


def test_a_reader_that_finds_two_copies_proves_a_double_store() -> None:
    script = Script().send("a").add("stored", "ok", "a").add("stored", "ok", "a").handle("a").drained()
    assert kinds(script) == ["duplicated_by_producer"]


def test_a_copy_made_by_giving_back_is_not_stored_twice_by_the_producer() -> None:
    script = Script().send("a").receive("a", position="t/0@1").add("nack", "invoke", "a", "consumer-1#1")
    script.add("ack", "ok", "a", "consumer-1#1", end="settled").handle("a", position="t/0@2").drained()
    assert kinds(script) == ["redelivered"]


def test_one_position_handed_out_twice_is_one_copy() -> None:
    script = Script().send("a").receive("a", position="t/0@1").killed().handle("a", "b#1", position="t/0@1").drained()
    assert checkers.duplicated_by_producer(script.history) == []


# ---------------------------------------------------------------- phantoms


def test_received_and_never_sent_is_a_phantom() -> None:
    assert kinds(Script().handle("x").drained()) == ["phantom"]


def test_received_and_refused_is_a_phantom() -> None:
    (phantom,) = checkers.phantom(Script().send("a", "fail", cause="unroutable").handle("a").drained().history)
    assert phantom.detail == "received, although the send was refused (unroutable)"


def test_received_with_an_unknown_end_is_no_phantom() -> None:
    assert kinds(Script().send("a", "info").handle("a").drained()) == []


def test_refused_once_and_confirmed_later_is_no_phantom() -> None:
    assert kinds(Script().send("a", "fail").send("a").handle("a").drained()) == []


@pytest.mark.parametrize("wrong", [{"sha": "other"}, {"headers_ok": False}, {"key": "other"}])
def test_received_as_something_else_is_a_phantom(wrong: dict[str, object]) -> None:
    assert kinds(Script().send("a").handle("a", **wrong).drained()) == ["phantom"]


# ---------------------------------------------------------------- order


def test_effects_against_the_order_of_one_key_are_reordered() -> None:
    script = Script().send("a", key="k").send("b", key="k").handle("b", key="k").handle("a", key="k").drained()
    (one,) = checkers.reordered(script.history)
    assert (one.id, one.detail) == ("a", "sent before b with the key 'k', and effected after it")


def test_only_the_overtaken_message_counts() -> None:
    script = Script()
    for id in ("a", "b", "c", "d"):
        script.send(id, key="k")
    for id in ("b", "c", "d", "a"):
        script.handle(id, key="k")
    assert [anomaly.id for anomaly in checkers.reordered(script.drained().history)] == ["a"]


def test_other_keys_and_other_producers_owe_each_other_no_order() -> None:
    script = Script().send("a", key="k").send("b", key="l").send("c", actor="producer-2#1", key="k")
    script.handle("c", key="k").handle("b", key="l").handle("a", key="k").drained()
    assert kinds(script) == []


def test_a_second_effect_out_of_order_is_a_duplicate_and_no_reordering() -> None:
    script = Script().send("a", key="k").send("b", key="k").handle("a", end="lost", key="k").handle("b", key="k")
    assert checkers.reordered(script.handle("a", key="k", attempt=2).drained().history) == []


# ---------------------------------------------------------------- dead letters and words


def test_rejected_and_nowhere_is_leaked() -> None:
    script = Script().send("a").receive("a").add("reject", "invoke", "a", "consumer-1#1").drained()
    assert kinds(script) == ["leaked", "lost"]


def test_dead_lettered_and_effected_is_leaked() -> None:
    assert kinds(Script().send("a").handle("a").add("dead", "ok", "a", "reader").drained()) == ["leaked"]


def test_settled_and_received_again_without_a_failure_is_a_false_success() -> None:
    script = Script().send("a").handle("a").receive("a", "consumer-2#1", attempt=2).drained()
    assert kinds(script) == ["false_success", "redelivered"]


def test_a_consumer_that_died_later_does_not_excuse_a_settled_ack() -> None:
    script = Script().send("a").handle("a").killed().receive("a", "consumer-2#1", attempt=2).drained()
    assert "false_success" in kinds(script)


def test_a_broker_that_failed_later_excuses_a_settled_ack() -> None:
    script = Script().send("a").handle("a").fault("broker_kill", "node 0", pid=7, pid_after=0)
    assert kinds(script.receive("a", "consumer-2#1", attempt=2).drained()) == ["redelivered"]


@pytest.mark.parametrize("end", ["sent", "lost", "unknown", None])
def test_an_ack_that_promised_nothing_is_no_false_success(end: str | None) -> None:
    script = Script().send("a").handle("a", end=end).receive("a", "consumer-2#1", attempt=2).drained()
    assert kinds(script) == ["redelivered"]


def test_sent_and_then_settled_is_held_to_settled() -> None:
    script = Script().send("a").handle("a", end="sent").add("ack", "ok", "a", "consumer-1#1", end="settled")
    assert "false_success" in kinds(script.receive("a", "consumer-2#1", attempt=2).drained())


def test_a_nack_that_settled_may_come_again() -> None:
    script = Script().send("a").receive("a").add("nack", "invoke", "a", "consumer-1#1")
    script.add("ack", "ok", "a", "consumer-1#1", end="settled").handle("a", attempt=2)
    assert kinds(script.drained()) == ["redelivered"]


def test_an_ack_settled_after_another_took_over_is_a_late_lie() -> None:
    script = Script().send("a").receive("a").effect("a").fault("freeze", state="T")
    script.handle("a", "consumer-2#1", attempt=2).ack("a", "settled").drained()
    assert "late_ack_settled" in kinds(script)


def test_an_older_handing_over_that_a_thawed_consumer_tells_later_has_taken_nothing_over() -> None:
    script = Script().send("a").receive("a", "consumer-2#1", attempt=2, position="t/0@1").effect("a", "consumer-2#1")
    script.receive("a", attempt=1, position="t/0@1").effect("a").ack("a", "settled", "consumer-2#1").ack("a", "lost")
    assert kinds(script.drained()) == ["duplicated", "redelivered"]


def test_attempts_that_begin_anew_hide_no_false_success_from_who_settled() -> None:
    script = Script().send("a").handle("a", attempt=2, position="t/0@1").receive("a", attempt=1, position="t/0@1")
    assert "false_success" in kinds(script.drained())


def test_an_ack_reported_lost_after_another_took_over_is_the_truth() -> None:
    script = Script().send("a").receive("a").effect("a").fault("freeze", state="T")
    script.handle("a", "consumer-2#1", attempt=2).ack("a", "lost").drained()
    assert kinds(script) == ["duplicated", "redelivered"]


def test_confirmed_and_never_there_without_a_failure_is_a_false_success() -> None:
    assert kinds(Script().send("a").drained()) == ["false_success", "lost"]


def test_a_broker_killed_after_the_confirm_makes_it_a_loss_and_no_lie() -> None:
    assert kinds(Script().send("a").fault("broker_kill", "node 0", pid=7, pid_after=0).drained()) == ["lost"]


# ---------------------------------------------------------------- the record


def test_an_ack_without_an_effect_is_a_gap() -> None:
    script = Script().send("a").receive("a").ack("a")
    assert list(checkers.gaps(script.history)) == ["consumer-1#1 acked a without a record of its effect"]


def test_an_effect_without_a_receive_is_a_gap() -> None:
    assert list(checkers.gaps(Script().send("a").effect("a").history))


def test_a_strike_at_a_barrier_nobody_stood_at_is_a_gap() -> None:
    script = Script().add("fault", "ok", kind="kill", target="c#1", point="before_ack", evidence={"status": -9})
    assert "does not say that it stood there" in next(iter(checkers.gaps(script.history)))


def test_standing_before_an_ack_without_an_effect_is_a_gap() -> None:
    script = Script().send("a").receive("a").add("at", "info", "a", "consumer-1#1", point="before_ack")
    assert "without a record of what came before" in next(iter(checkers.gaps(script.history)))


def numbered(ends: int | None, *numbers: int) -> History:
    """One actor's lines with these numbers, and how many it is said to have written."""
    lines = [Event(n, n, "consumer-1", 1, "note", "info", no=n) for n in numbers]
    end = Event(99, 99, "supervisor", 1, "process_end", "info", more={"target": "consumer-1", "lines": ends})
    return History([*lines, end])


def test_a_number_that_is_missing_is_a_gap() -> None:
    assert list(checkers.gaps(numbered(4, 1, 2, 4))) == ["consumer-1's journal has no line 3"]


def test_a_last_line_that_is_missing_is_a_gap_whoever_wrote_it() -> None:
    assert list(checkers.gaps(numbered(4, 1, 2, 3))) == ["consumer-1's journal ends at line 3, and 4 were written"]
    assert list(checkers.gaps(numbered(1))) == ["consumer-1's journal ends at line 0, and 1 were written"]


def test_a_line_written_in_the_moment_of_the_kill_is_no_gap() -> None:
    assert list(checkers.gaps(numbered(3, 1, 2, 3, 4))) == []
    assert list(checkers.gaps(numbered(None))) == []


def test_a_journal_whose_actor_nobody_saw_end_is_a_gap() -> None:
    events = [event for event in numbered(1, 1) if event.op != "process_end"]
    assert list(checkers.gaps(History(events))) == ["nothing says how consumer-1 ended, and how many lines it wrote"]


def test_a_journal_numbers_its_lines_and_says_beside_it_how_many_there_are(tmp_path: Path) -> None:
    path = tmp_path / "consumer-1.jsonl"
    assert Journal.written(path) is None
    with Journal(path, "consumer-1") as journal:
        threads = [threading.Thread(target=lambda: [journal.write("note") for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert journal.lines == Journal.written(path) == 200
    assert [event.no for event in History.load(tmp_path)] == list(range(1, 201))


def test_a_whole_record_has_no_gap() -> None:
    script = Script().send("a").receive("a").effect("a").add("at", "info", "a", "consumer-1#1", point="before_ack")
    script.add("fault", "ok", kind="kill", target="consumer-1#1", point="before_ack", evidence={"status": -9})
    assert list(checkers.gaps(script.handle("a", "consumer-2#1").drained().history)) == []


@pytest.mark.parametrize(
    ("kind", "evidence", "missing"),
    [
        ("kill", {"status": -9}, ""),
        ("kill", {"status": 0}, "ended with 0 instead of -9"),
        ("kill", {"status": -15}, "ended with -15 instead of -9"),
        ("kill", {"said": "done"}, "ended with None"),
        ("freeze", {"state": "T"}, ""),
        ("freeze", {"state": "S"}, "the kernel says S"),
        ("broker_kill", {"pid": 7, "pid_after": 0}, ""),
        ("broker_kill", {"pid": 7, "pid_after": 7}, "still there"),
        ("ack_dropped", {"frame": "basic.ack"}, ""),
        ("ack_dropped", {}, "nothing shows"),
    ],
)
def test_a_fault_is_believed_by_its_evidence_only(kind: str, evidence: dict[str, object], missing: str) -> None:
    (fault,) = examine(Script().fault(kind, "x", **evidence).history).faults
    assert missing in fault.missing_evidence
    assert bool(missing) == bool(fault.missing_evidence)


def test_a_fault_that_was_only_begun_did_not_fire() -> None:
    (fault,) = examine(Script().add("fault", "invoke", kind="kill", target="x").history).faults
    assert not fault.fired
    assert fault.missing_evidence


# ---------------------------------------------------------------- counts, metrics, trails


def test_the_counts_are_those_of_the_results() -> None:
    script = Script().send("a").send("b", "info").send("c", "fail").send("d", None).handle("a").handle("b").drained()
    assert checkers.observed(script.history) == {
        "sent": 4,
        "confirmed": 1,
        "unknown": 2,
        "refused": 1,
        "received": 2,
        "effects": 2,
        "lost": 0,
        "blocked": 0,
        "duplicated": 0,
        "redelivered": 0,
        "reordered": 0,
        "phantom": 0,
    }


def test_latency_runs_from_the_send_to_the_first_effect() -> None:
    script = Script().send("a").handle("a").drained()
    latency = checkers.metrics(script.history)["processing_latency_ms"]
    assert latency == {"p50": 3000.0, "p95": 3000.0, "p99": 3000.0}


def test_recovery_runs_from_the_heal_to_the_next_effect() -> None:
    script = Script().send("a").fault("cut", "network", cut=1).add("heal", "ok").handle("a").drained()
    assert checkers.metrics(script.history)["recovery_s"] == 2.0


def test_rates_and_counts_of_a_lossy_run() -> None:
    script = Script().send("a").send("b").handle("a").handle("a", attempt=2).handle("a", attempt=3).drained()
    metrics = checkers.metrics(script.history)
    assert metrics["duplicate_count"] == 2
    assert metrics["message_loss_rate"] == 0.5


def test_percentiles_are_nearest_rank() -> None:
    assert checkers.percentile([], 50) is None
    assert [checkers.percentile(range(1, 101), part) for part in (50, 95, 99)] == [50, 95, 99]
    assert checkers.percentile([7.0], 99) == 7.0


def test_a_trail_tells_all_of_one_message_and_the_faults_around_it() -> None:
    script = Script().send("a").send("b").receive("a").effect("a").killed().handle("a", "consumer-2#1").handle("b")
    (duplicate,) = checkers.duplicated(script.drained().history)
    told = [(event.op, event.type) for event in duplicate.trail]
    assert told == [
        ("send", "invoke"),
        ("send", "ok"),
        ("receive", "ok"),
        ("effect", "ok"),
        ("fault", "invoke"),
        ("fault", "ok"),
        ("receive", "ok"),
        ("effect", "ok"),
        ("ack", "invoke"),
        ("ack", "ok"),
    ]


# ---------------------------------------------------------------- properties

IDS = st.sampled_from(["a", "b", "c", "d", "e"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), IDS, st.sampled_from(["ok", "fail", "info", None])),
        st.tuples(st.just("receive"), IDS, st.sampled_from(["consumer-1#1", "consumer-2#1"])),
        st.tuples(st.just("effect"), IDS, st.sampled_from(["consumer-1#1", "consumer-2#1"])),
        st.tuples(st.just("ack"), IDS, st.sampled_from(["settled", "sent", "lost", None])),
        st.tuples(st.just("fault"), st.sampled_from(["kill", "cut"]), st.sampled_from(["node 0", "consumer-1#1"])),
    ),
    max_size=40,
)


def played(steps: list[tuple[str, str, str | None]], drained: bool = True) -> Script:
    script = Script()
    for verb, *arguments in steps:
        getattr(script, verb)(*arguments)
    return script.drained() if drained else script


@given(STEPS)
def test_counts_add_up_in_any_history(steps: list[tuple[str, str, str | None]]) -> None:
    found = examine(played(steps).history)
    seen = found.observed
    assert seen["confirmed"] + seen["unknown"] + seen["refused"] == seen["sent"]
    assert seen["lost"] <= seen["sent"]
    assert seen["duplicated"] <= found.metrics["duplicate_count"] <= seen["effects"]
    assert all(value >= 0 for value in seen.values())


@given(STEPS)
def test_lost_and_effected_exclude_each_other(steps: list[tuple[str, str, str | None]]) -> None:
    history = played(steps).history
    effected = history.ids("effect")
    assert not effected & {anomaly.id for anomaly in checkers.lost(history)}
    assert history.ids("send", "ok") <= effected | {anomaly.id for anomaly in checkers.lost(history)}


@given(STEPS)
def test_without_a_drain_nothing_is_lost(steps: list[tuple[str, str, str | None]]) -> None:
    assert checkers.lost(played(steps, drained=False).history) == []


@given(STEPS, st.integers())
def test_a_checker_sees_the_same_in_any_order_of_the_files(steps: list[tuple[str, str, str | None]], seed: int) -> None:
    events = played(steps).events
    mixed = events[:]
    random.Random(seed).shuffle(mixed)
    assert checkers.anomalies(History(events)) == checkers.anomalies(History(mixed))


@given(STEPS)
def test_every_anomaly_carries_a_trail_of_its_own_message(steps: list[tuple[str, str, str | None]]) -> None:
    for anomaly in checkers.anomalies(played(steps).history):
        assert any(event.id == anomaly.id for event in anomaly.trail)


@given(st.lists(IDS, unique=True))
def test_healthy_work_is_always_clean(ids: list[str]) -> None:
    script = Script()
    for id in ids:
        script.send(id, key="k").handle(id, key="k")
    assert kinds(script.drained()) == []


@given(st.permutations(["a", "b", "c", "d", "e"]))
def test_order_is_clean_exactly_for_the_order_sent(order: list[str]) -> None:
    script = Script()
    for id in sorted(order):
        script.send(id, key="k")
    for id in order:
        script.handle(id, key="k")
    assert (checkers.reordered(script.drained().history) == []) == (order == sorted(order))
