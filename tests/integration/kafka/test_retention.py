"""How long a message may still be handed out: what a window of the inbox has to outlast."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import brokerkit
from brokerkit import once

pytestmark = pytest.mark.integration

HOUR, DAY, CHECK = 3600.0, 86_400.0, 300.0


def kept(broker: brokerkit.Broker) -> float | None:
    return broker.claims().properties.retention_seconds


@pytest.mark.parametrize(
    ("config", "seconds"),
    [
        ({"retention.ms": "3600000", "segment.ms": "600000"}, HOUR + 600 + CHECK),
        ({"retention.ms": "-1"}, None),
        ({"cleanup.policy": "compact"}, None),
        ({"cleanup.policy": "compact,delete", "retention.ms": "3600000"}, HOUR + 7 * DAY + CHECK),
    ],
)
def test_a_topic_s_own(broker: brokerkit.Broker, topic: str, config: Mapping[str, str], seconds: float | None) -> None:
    broker.declare(topic, native={"config": config})
    assert kept(broker) == seconds


def test_of_several_the_longest(broker: brokerkit.Broker, topic: str) -> None:
    for name, days in (("short", 1), ("long", 3)):
        broker.declare(f"{topic}-{name}", native={"config": {"retention.ms": str(int(days * DAY * 1000))}})
    assert kept(broker) == (3 + 7) * DAY + CHECK


def test_the_node_s_where_no_topic_is_known_yet(url: str) -> None:
    with brokerkit.connect(url) as broker:
        assert kept(broker) == (7 + 7) * DAY + CHECK


def test_the_inbox_is_not_pruned_below_it(url: str, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    once.init(store)
    command = [sys.executable, "-m", "brokerkit.cli", "once", "prune", store, "--broker", url, "--older-than"]
    refused = subprocess.run([*command, "14d"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "give at least 14 days, 0:05:08" in refused.stderr
    assert subprocess.run([*command, "15d"], capture_output=True, text=True, timeout=60).stdout == "0 forgotten\n"
