"""What the ledger of a history says."""

from __future__ import annotations

from brokerkit_conformance import money
from brokerkit_conformance.checkers import Kind, examine
from brokerkit_conformance.money import account_of, dollars_of
from brokerkit_conformance.verdict import judge

from .histories import SECOND, Script

ONCE = {"guarantee": "exactly_once", "subscriptions": ["work"]}


def charge(script: Script, id: str, dollars: int | None = None, at: int = 3, by: str = "charger-1") -> Script:
    dollars = dollars_of(id) if dollars is None else dollars
    return script.add(
        "charge", "ok", id, dollars=dollars, account=account_of(id), by=by, made_at=at * SECOND, subscription="work"
    )


def ledger(script: Script, dollars: int) -> Script:
    return script.drained().add("ledger", "ok", balances={"0": dollars - 1, "1": 1})


def test_a_charge_is_an_effect_of_the_time_at_which_it_was_made():
    script = charge(Script(**ONCE).send("a"), "a", at=4)
    found = examine(ledger(script, dollars_of("a")).history)
    assert found.observed["lost"] == found.observed["duplicated"] == 0
    assert found.metrics["processing_latency_ms"]["p50"] == 2000.0
    dollars = dollars_of("a")
    assert found.metrics["ledger"] == {"owed": dollars, "charged": dollars, "balances": dollars, "rows": 1}
    assert judge(ledger(script, dollars_of("a")).history).verdict == "held"


def test_one_that_is_owed_and_not_charged_is_lost():
    script = charge(Script(**ONCE).send("a").send("b"), "a")
    found = examine(ledger(script, dollars_of("a")).history)
    assert [anomaly.id for anomaly in found.of(Kind.LOST)] == ["b"]
    assert found.metrics["ledger"]["owed"] == dollars_of("a") + dollars_of("b")


def test_one_that_is_charged_twice_is_doubled_and_says_by_whom():
    script = charge(charge(Script(**ONCE).send("a"), "a"), "a", by="charger-2")
    found = examine(ledger(script, 2 * dollars_of("a")).history)
    assert [anomaly.detail for anomaly in found.of(Kind.DUPLICATED)] == ["effected 2 times, by charger-1, charger-2"]
    assert found.broken == ()


def test_balances_that_are_not_the_charges_are_wrong_whatever_is_claimed():
    script = charge(Script(**ONCE, claim={"duplicate": "expected", "condition": "always"}).send("a"), "a")
    history = ledger(script, dollars_of("a") + 5).history
    [sentence] = money.wrong(history)
    assert sentence == f"the balances add up to ${dollars_of('a') + 5}, and the charges to ${dollars_of('a')}"
    assert judge(history).verdict == "violated"


def test_a_charge_of_another_sum_is_wrong():
    script = charge(Script(**ONCE).send("a"), "a", dollars_of("a") + 1)
    assert "instead of" in " ".join(money.wrong(ledger(script, dollars_of("a") + 1).history))


def test_what_is_unknown_and_charged_is_owed_and_what_is_unknown_and_not_charged_is_not():
    script = charge(Script(**ONCE).send("a", "info").send("b", "info"), "a")
    assert money.sums(ledger(script, dollars_of("a")).history)["owed"] == dollars_of("a")


def test_a_history_without_a_ledger_has_no_money():
    history = Script(**ONCE).send("a").history
    assert money.sums(history) == {}
    assert list(money.wrong(history)) == []
    assert money.told(history) == ""
