"""Three nodes: one cluster, a leader that can be named, and a life without it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from brokerkit.local.contract import LocalBroker
from brokerkit.local.targets import target

from .conftest import client, within

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.fixture(scope="module", params=["rabbitmq:3nodes", "kafka:3nodes"])
def cluster(request, tmp_path_factory) -> Iterator[LocalBroker]:
    local = target(request.param)
    local.start(tmp_path_factory.mktemp("cluster"), nodes=local.default_nodes)
    yield local
    local.stop()


def test_the_cluster_goes_on_without_the_leader_and_keeps_what_was_confirmed(cluster):
    assert len([pid for pid in cluster.pids() if pid]) == 3
    raw = client(cluster.name, cluster.url())
    raw.declare()
    assert raw.send(300) == 300
    assert within(15, lambda: cluster.leader("ledger", "all") is not None)
    first = cluster.leader("ledger", "all")
    assert first is not None
    cluster.kill(first)
    assert within(30, lambda: cluster.leader("ledger", "all") not in (None, first))
    others = [f"{host}:{port}" for node, (host, port) in enumerate(_direct(cluster)) if node != first]
    left = client(cluster.name, f"{cluster.url().partition('//')[0]}//{','.join(others)}")
    assert len(left.receive(300, 60)) == 300
    cluster.restart(first)
    assert all(cluster.pids())


def _direct(cluster: LocalBroker) -> list[tuple[str, int]]:
    hosts = cluster.url().partition("//")[2].split(",")
    return [(host.partition(":")[0], int(host.partition(":")[2])) for host in hosts]
