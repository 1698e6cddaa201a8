"""What a check declares, and at which guarantees it asks for what."""

from __future__ import annotations

from brokerkit_conformance.checks.registry import checks

from brokerkit.guarantees import Properties


def test_refusals_by_name_are_claimed_where_a_producer_is_told_how_its_sends_end() -> None:
    spec = checks()["send_refused"]
    claimed = {producer: spec.claimed(producer, "at_least_once", Properties()) for producer in (MOST, LEAST, ONCE)}
    assert claimed == {MOST: False, LEAST: True, ONCE: True}


def test_order_is_claimed_where_a_plugin_states_its_scope() -> None:
    spec = checks()["order"]
    assert not spec.claimed(LEAST, LEAST, Properties(order="none"))
    assert spec.claimed(LEAST, LEAST, Properties(order="per_key"))


def test_a_witness_is_owed_at_the_guarantee_of_the_end_that_varies() -> None:
    sending, working = checks()["send_fails"], checks()["consumer_killed_before_ack"]
    assert sending.witness_for(MOST, LEAST, Properties()) == "loss"
    assert sending.witness_for(LEAST, MOST, Properties()) is None
    assert working.witness_for(MOST, LEAST, Properties()) == "duplicate"
    assert working.witness_for(LEAST, MOST, Properties()) is None


MOST, LEAST, ONCE = "at_most_once", "at_least_once", "exactly_once"
