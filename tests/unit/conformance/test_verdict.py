"""Claims held against histories: each verdict, for its own reason."""

from __future__ import annotations

import pytest
from brokerkit_conformance.verdict import Judgement, Question, Verdict, bound, exceptions, judge, most_severe

from brokerkit.guarantees import Claim, Guarantee, Likelihood

from .histories import Script

NEVER = {"loss": "never", "duplicate": "never"}
TWICE = {"loss": "never", "duplicate": "expected"}


def doubled(**cell: object) -> Script:
    """The effect was done, then the kill, then another consumer did it again."""
    script = Script(**cell).send("a").receive("a").effect("a").killed()
    return script.handle("a", "consumer-2#1", attempt=2)


def verdict(script: Script) -> tuple[str, str]:
    judgement: Judgement = judge(script.history)
    return str(judgement.verdict), judgement.why


def test_held_says_how_sure_it_is() -> None:
    script = Script(check="none")
    for number in range(30):
        script.send(f"m-{number}").handle(f"m-{number}")
    assert verdict(script.drained()) == (
        "held",
        "0 lost, 0 twice of 30 sent; with none lost of 30, the loss rate is at most 0.1 (95 %)",
    )


def test_a_loss_that_the_claim_excludes_is_a_violation_with_its_counterexample() -> None:
    judgement = judge(Script(check="none").send("a").receive("a", attempt=1).drained().history)
    assert judgement.verdict is Verdict.VIOLATED
    assert "1 lost, and the claim says never (a: confirmed, received by consumer-1#1" in judgement.why
    assert [anomaly.id for anomaly in judgement.against] == ["a"]


def test_a_duplicate_that_the_claim_excludes_is_a_violation() -> None:
    assert verdict(doubled(claim=NEVER, needs_fault=True).drained())[0] == "violated"


def test_a_duplicate_that_the_claim_expects_is_held() -> None:
    assert verdict(doubled(claim=TWICE, needs_fault=True).drained())[0] == "held"


def test_expected_and_not_seen_is_not_witnessed() -> None:
    found, why = verdict(Script(claim=TWICE, needs_fault=True).send("a").handle("a").killed().drained())
    assert found == "not witnessed"
    assert "no message was duplicated, and it is expected here" in why


def test_possible_is_reported_and_held_both_ways() -> None:
    claim = {"loss": "never", "duplicate": "possible"}
    assert verdict(doubled(claim=claim).drained())[0] == "held"
    assert verdict(Script(claim=claim).send("a").handle("a").drained())[0] == "held"


def test_possible_is_no_way_out_where_the_check_has_a_witness() -> None:
    claim = {"loss": "never", "duplicate": "possible"}
    assert verdict(Script(claim=claim, witness="duplicate").send("a").handle("a").drained())[0] == "not witnessed"


def test_never_needs_no_witness() -> None:
    assert verdict(Script(claim=NEVER, witness="duplicate").send("a").handle("a").drained())[0] == "held"


def test_a_check_that_did_not_see_what_it_wanted_is_not_witnessed() -> None:
    script = Script(claim=NEVER).send("a").handle("a").add("expect", "fail", what="taken over", witness=True, got=0)
    assert verdict(script.drained()) == ("not witnessed", "taken over: got 0")


def test_an_expectation_that_fails_is_a_violation() -> None:
    script = Script(claim=NEVER).send("a").handle("a").add("expect", "fail", what="raises Closed", got="nothing")
    assert verdict(script.drained()) == ("violated", "raises Closed: got nothing")


@pytest.mark.parametrize(
    ("evidence", "why"),
    [({}, "nothing shows that it fired"), ({"status": -15}, "ended with -15 instead of -9")],
)
def test_a_fault_without_evidence_is_inconclusive(evidence: dict[str, object], why: str) -> None:
    script = Script(claim=NEVER, needs_fault=True).send("a").handle("a").fault("kill", **evidence).drained()
    found, said = verdict(script)
    assert found == "inconclusive"
    assert why in said


def test_no_fault_at_all_is_inconclusive_where_one_is_needed() -> None:
    assert verdict(Script(claim=NEVER, needs_fault=True).send("a").handle("a").drained())[0] == "inconclusive"


def test_a_trial_without_a_fault_is_inconclusive() -> None:
    script = Script(claim=NEVER, needs_fault=True).add("trial", "invoke", n=1).send("a").handle("a").killed()
    script.add("trial", "invoke", n=2).send("b").handle("b", "consumer-2#1").drained()
    assert verdict(script) == ("inconclusive", "the fault fired in 1 of 2 trials")


def test_a_drain_at_its_deadline_is_inconclusive() -> None:
    found, why = verdict(Script(claim=NEVER).send("a").drained("deadline", missing=["a"]))
    assert (found, why) == ("inconclusive", "the drain ended at its deadline, with 1 messages missing")


def test_nothing_sent_proves_nothing() -> None:
    assert verdict(Script(claim=NEVER).drained()) == ("inconclusive", "nothing was sent")


def test_a_duplicate_seen_before_a_deadline_is_still_a_violation() -> None:
    assert verdict(doubled(claim=NEVER).drained("deadline"))[0] == "violated"


def test_a_gap_in_the_record_proves_nothing_in_either_direction() -> None:
    script = Script(claim=NEVER).send("a").receive("a").ack("a").drained()
    found, why = verdict(script)
    assert found == "inconclusive"
    assert "the record has a gap: consumer-1#1 acked a without a record of its effect" in why


def test_without_a_claim_it_is_skipped_and_said() -> None:
    assert verdict(doubled(claim=None).drained()) == (
        "skipped",
        "the plugin claims nothing here; 0 lost, 1 twice of 1 sent",
    )


def test_a_phantom_is_a_violation_whatever_is_claimed() -> None:
    assert verdict(Script(claim=None).handle("x").drained())[0] == "violated"


def test_a_late_ack_reported_settled_is_a_violation_whatever_is_claimed() -> None:
    script = Script(claim=TWICE).send("a").receive("a").effect("a").fault("freeze", state="T")
    script.handle("a", "consumer-2#1", attempt=2).ack("a").drained()
    assert "late ack(s) reported settled" in verdict(script)[1]


def test_what_cannot_be_induced_is_unsupported_by_name() -> None:
    script = Script(claim=NEVER, needs_fault=True).add("unsupported", "info", reason="no process to kill")
    assert verdict(script) == ("unsupported", "no process to kill")


def test_reordering_is_judged_only_where_it_is_claimed() -> None:
    def swapped(reorder: str) -> Script:
        script = Script(claim={**NEVER, "reorder": reorder}).send("a", key="k").send("b", key="k")
        return script.handle("b", key="k").handle("a", key="k").drained()

    assert verdict(swapped("possible"))[0] == "held"
    assert verdict(swapped("never"))[0] == "violated"


def test_at_least_once_with_loss_must_name_its_condition() -> None:
    vague = Question(Claim(loss=Likelihood.POSSIBLE))
    named = Question(Claim(loss=Likelihood.POSSIBLE, condition="acks=1: the leader alone"))
    assert list(exceptions(named)) == ["at least once, and loss is possible: acks=1: the leader alone"]
    assert list(exceptions(vague)) == ["at least once, and loss is possible: without saying when"]
    script = Script(claim={"loss": "possible", "duplicate": "never"}).send("a").handle("a").drained()
    assert verdict(script)[0] == "violated"


def test_loss_at_most_once_is_no_exception() -> None:
    claim = Claim(loss=Likelihood.EXPECTED)
    assert list(exceptions(Question(claim, guarantee=Guarantee.AT_MOST_ONCE))) == []


def test_a_history_that_does_not_say_what_it_proves_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="no cell event"):
        judge(Script().send("a").history)


def test_the_rule_of_three() -> None:
    assert bound(300) == 0.01
    assert bound(1) == bound(0) == 1.0


def test_the_worst_verdict_stands_for_many() -> None:
    assert most_severe([Verdict.HELD, Verdict.INCONCLUSIVE, Verdict.NOT_WITNESSED]) is Verdict.INCONCLUSIVE
    assert most_severe([Verdict.HELD, Verdict.SKIPPED]) is Verdict.HELD


def test_only_held_unsupported_and_skipped_are_green() -> None:
    assert {verdict for verdict in Verdict if verdict.green} == {"held", "unsupported", "skipped"}
