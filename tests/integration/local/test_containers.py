"""The last way of the chain, where a Docker engine answers; elsewhere these say that they were not run."""

from __future__ import annotations

import pytest

from brokerkit.local.chain import PROVIDER
from brokerkit.local.contract import Unavailable
from brokerkit.local.targets import target

from .conftest import client, within

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", ["rabbitmq", "rabbitmq:4.0", "kafka"])
def test_a_container_serves_is_killed_comes_back_and_goes(name, tmp_path, monkeypatch):
    monkeypatch.setenv(PROVIDER, "docker")
    local = target(name)
    try:
        chosen = local.provision()
    except Unavailable as reason:
        pytest.skip(f"not run: {reason}")
    assert chosen.provider == "docker"
    local.start(tmp_path, timeout=300)
    try:
        raw = client(name, local.url())
        assert raw.answers(10)
        local.pause()
        assert not raw.answers(1.5)
        local.resume()
        assert within(15, lambda: raw.answers(2))
        local.kill()
        assert not raw.answers(1.5)
        local.restart(timeout=120)
        assert raw.answers(10)
    finally:
        local.stop()
    assert not raw.answers(1.5)
