"""What drivers share: claims put together, options checked, what exists already compared."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, PositiveInt

from brokerkit.declared import check_same
from brokerkit.errors import ConfigurationError
from brokerkit.guarantees import Claim, FailurePoint, Likelihood, together
from brokerkit.plugins import checked

NEVER, POSSIBLE, EXPECTED = Likelihood.NEVER, Likelihood.POSSIBLE, Likelihood.EXPECTED


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    partitions: PositiveInt | None = None


def test_claims_together_are_the_weaker_in_each_respect_under_all_conditions() -> None:
    sent = {FailurePoint.BROKER_KILLED: Claim(POSSIBLE, NEVER, NEVER, "unconfirmed", "here")}
    taken = {FailurePoint.BROKER_KILLED: Claim(NEVER, EXPECTED, NEVER, "uncommitted", "there")}
    found = together(sent, taken)[FailurePoint.BROKER_KILLED]
    assert found == Claim(POSSIBLE, EXPECTED, NEVER, "unconfirmed; uncommitted", "here")


def test_a_point_that_one_part_alone_claims_stays_as_it_is() -> None:
    poison = Claim(NEVER, POSSIBLE, condition="twice")
    points = together({FailurePoint.CONFIRM_LOST: Claim()}, {FailurePoint.POISON: poison})
    assert points == {"confirm_lost": Claim(), "poison": poison}


def test_a_condition_that_both_have_is_said_once() -> None:
    one = {FailurePoint.NONE: Claim(condition="quiet")}
    assert together(one, one)["none"].condition == "quiet"


def test_what_was_not_asked_for_may_be_anything() -> None:
    check_same("topic 'orders'", {"partitions": None, "attempts": 3}, {"partitions": 4, "attempts": 3})


def test_what_is_there_otherwise_is_told_with_both_values() -> None:
    with pytest.raises(ConfigurationError, match="topic 'orders' exists with partitions=4, not 8: declare it as it is"):
        check_same("topic 'orders'", {"partitions": 8}, {"partitions": 4})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"colour": "red"}, "unknown option 'colour' for kafka; known: partitions, and others"),
        ({"partitions": "four"}, "option 'partitions' for kafka"),
        ({"partitions": True}, "option 'partitions' for kafka"),
        ({"partitions": 0}, "option 'partitions' for kafka"),
    ],
)
def test_a_wrong_option_is_told_by_name(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        checked(Options, given, "kafka", ", and others")
    assert "red" not in str(caught.value)
    assert "four" not in str(caught.value)


def test_right_options_come_typed() -> None:
    assert checked(Options, {"partitions": 4}, "kafka").partitions == 4
