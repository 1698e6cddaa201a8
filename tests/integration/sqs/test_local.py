"""The local brokers of SQS: their life, their addresses, and what they refuse."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import brokerkit
from brokerkit.errors import NotSupported
from brokerkit.local.chain import url_variable
from brokerkit.local.contract import LocalBroker, StartFailed
from brokerkit.local.fixtures import TestBroker
from brokerkit.local.targets import target

pytestmark = pytest.mark.integration

TARGETS = ["sqs", "sqs:elasticmq", "sqs:moto"]


@pytest.fixture(params=["sqs:elasticmq", "sqs:moto"])
def local(request: pytest.FixtureRequest) -> Iterator[LocalBroker]:
    made = target(request.param)
    made.provision()
    yield made
    made.stop()


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_says_what_it_is(name: str):
    chosen = target(name).provision()
    assert (chosen.product, chosen.kind) == (("moto", "mock") if name == "sqs:moto" else ("ElasticMQ", "emulator"))
    assert chosen.version[0].isdigit()


def test_it_starts_serves_pauses_and_leaves_nothing(local: LocalBroker, tmp_path: Path):
    local.start(tmp_path)
    (pid,) = local.pids()
    with brokerkit.connect(local.url() + "&request_timeout=1") as broker:
        broker.declare("payments", ["ledger"])
        if local.provision().kind == "mock":
            with pytest.raises(NotSupported, match="stands still"):
                local.pause()
            local.stop()
            return
        local.pause()
        began = time.monotonic()
        with pytest.raises(brokerkit.ConnectionLost):
            broker.depth("payments", "ledger")
        assert time.monotonic() - began < 5
        local.resume()
        assert broker.depth("payments", "ledger") == 0
    local.stop()
    local.stop()
    assert not Path(f"/proc/{pid}").exists()


def test_a_killed_one_comes_back_at_its_address_unless_it_forgets_all(local: LocalBroker, tmp_path: Path):
    local.start(tmp_path)
    if local.provision().kind == "mock":
        for touch in (local.kill, local.restart):
            with pytest.raises(NotSupported, match="keeps nothing on disk"):
                touch()
        return
    before, url = local.pids(), local.url()
    local.kill()
    assert local.pids() == [0]
    local.restart()
    assert local.pids() != before
    assert local.url() == url
    with brokerkit.connect(url) as broker:
        broker.declare("payments", ["ledger"])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"nodes": 3}, NotSupported, "one process"),
        ({"secure": True}, NotSupported, "plain HTTP"),
        ({"settings": {"colour": "red"}}, StartFailed, "colour"),
    ],
)
def test_what_it_cannot_is_refused_by_name(local: LocalBroker, tmp_path: Path, options, error, words):
    with pytest.raises(error, match=words):
        local.start(tmp_path, **options)
    assert local.pids() == []


def test_through_names_the_proxy(local: LocalBroker, tmp_path: Path):
    local.start(tmp_path, through=[("127.0.0.1", 4)])
    assert urlsplit(local.url(through=True)).port == 4
    assert local.upstream() == [("127.0.0.1", urlsplit(local.url()).port)]


def test_a_running_endpoint_that_the_user_names_comes_first(sqs: TestBroker, monkeypatch, tmp_path: Path):
    monkeypatch.setenv(url_variable("sqs:elasticmq"), sqs.url)
    named = target("sqs:elasticmq")
    assert named.provision().provider == "running"
    named.start(tmp_path)
    with brokerkit.connect(named.url()) as broker:
        assert broker.describe()["product"] == "ElasticMQ"
    named.stop()
    assert sqs.local.pids()[0] in {int(pid) for pid in os.listdir("/proc") if pid.isdigit()}


def test_amazon_s_own_endpoint_can_be_named_too(monkeypatch, tmp_path: Path):
    monkeypatch.setenv(url_variable("sqs"), "sqs://eu-west-1")
    named = target("sqs")
    named.provision()
    named.start(tmp_path)
    assert (named.url(through=True), named.upstream()) == ("sqs://eu-west-1", [])
