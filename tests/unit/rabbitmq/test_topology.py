"""Names and arguments of queues, by version."""

from __future__ import annotations

import pytest
from brokerkit_rabbitmq import topology

from brokerkit.driver import Subscription


def arguments(version: tuple[int, int], kind: str = "quorum", **options: object) -> dict[str, object]:
    subscription = Subscription("sub", **options)  # type: ignore[arg-type]
    return topology.queue_arguments(kind, subscription, version)


def test_without_attempts_a_quorum_queue_drops_nothing() -> None:
    assert arguments((4, 3))["x-delivery-limit"] == -1
    assert "x-delivery-limit" not in arguments((3, 10))


def test_attempts_are_one_more_than_returns() -> None:
    found = arguments((4, 3), attempts=3, dead_letter="dead")
    assert found["x-delivery-limit"] == 2
    assert found["x-dead-letter-exchange"] == "dead"
    assert found["x-dead-letter-strategy"] == "at-least-once"
    assert found["x-overflow"] == "reject-publish"


@pytest.mark.parametrize(
    ("version", "kind", "taken"),
    [((4, 3), "quorum", True), ((4, 3), "classic", False), ((4, 0), "classic", True), ((3, 10), "quorum", False)],
)
def test_the_consumer_timeout_is_set_where_the_queue_takes_one(
    version: tuple[int, int], kind: str, taken: bool
) -> None:
    assert ("x-consumer-timeout" in arguments(version, kind, handling_seconds=60.0)) is taken


def test_native_arguments_win() -> None:
    assert arguments((4, 3), native={"x-delivery-limit": 7, "queue": "q"})["x-delivery-limit"] == 7


@pytest.mark.parametrize(
    ("asked", "kept"), [(0, 0), (1, 1), (99, 99), (100, 100), (101, 110), (1000, 1000), (1234, 1300), (98765, 99000)]
)
def test_delays_share_queues_and_are_never_early(asked: int, kept: int) -> None:
    assert topology.coarse(asked) == kept


def test_a_delay_queue_hands_back_to_where_the_message_goes() -> None:
    name, found = topology.delay_queue(("", "topic--sub"), 500)
    assert name == "brokerkit-delay--500--queue--topic--sub"
    assert (found["x-dead-letter-exchange"], found["x-dead-letter-routing-key"]) == ("", "topic--sub")
    assert len(topology.delay_queue(("e" * 200, "k" * 100), 500)[0]) < 255
