"""Controls: settings that lose confirmed messages are seen losing them, and say so; the defaults never do."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.prove, pytest.mark.integration, pytest.mark.timeout(1200)]

NODES, EARLY = "kafka:3nodes", "kafka:3nodes?client.acks=1&client.enable.idempotence=false"
DURABLE, TRANSIENT = "rabbitmq", "rabbitmq?queue=classic&persistent=false"


@pytest.mark.parametrize(
    ("target", "check"), [(EARLY, "leader_killed"), (TRANSIENT, "broker_killed")], ids=["acks=1", "transient"]
)
def test_weak_settings_are_seen_losing_confirmed_messages_and_their_claim_expects_it(
    target: str, check: str, conformance: Any
) -> None:
    cell = at_least_once(conformance(target, "--check", check, timeout=900), target, check)
    assert cell["claim"]["loss"] == "expected"
    assert cell["claim"]["condition"]
    assert cell["observed"]["lost"] > 0
    assert cell["verdict"] == "held"


@pytest.mark.parametrize(("target", "check"), [(NODES, "leader_killed"), (DURABLE, "broker_killed")])
def test_default_settings_lose_nothing_that_was_confirmed(target: str, check: str, conformance: Any) -> None:
    cell = at_least_once(conformance(target, "--check", check, timeout=900), target, check)
    assert cell["claim"]["loss"] == "never"
    assert cell["observed"]["confirmed"] > 0
    assert cell["observed"]["lost"] == 0
    assert cell["verdict"] == "held"


def at_least_once(results: dict[str, Any], target: str, check: str) -> dict[str, Any]:
    """The cell where both ends asked for it, in which the fault is proved to have fired."""
    asked = (target, check, "at_least_once", "at_least_once")
    names = ("target", "check", "producer_guarantee", "guarantee")
    [cell] = [some for some in results["cells"] if tuple(some[name] for name in names) == asked]
    assert cell["fault"], "the fault did not fire"
    found: dict[str, Any] = cell
    return found
