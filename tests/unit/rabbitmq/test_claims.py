"""Claims that nobody can ask for. No broker."""

import pytest

import brokerkit
from brokerkit.errors import GuaranteeNotOffered


@pytest.mark.parametrize("ends", [{"producer": "exactly_once"}, {"consumer": "exactly_once"}])
def test_nothing_is_claimed_of_a_guarantee_that_is_not_offered(ends):
    with brokerkit.connect("amqp://localhost") as broker:
        with pytest.raises(GuaranteeNotOffered, match="rabbitmq, as configured"):
            broker.claims(**ends)
