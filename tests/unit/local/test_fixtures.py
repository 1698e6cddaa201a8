"""The pytest fixtures, in a session of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SQLITE = """
import brokerkit

def test_one(sqlite):
    with brokerkit.connect(sqlite.url) as broker:
        broker.declare(sqlite.name("payments"), subscriptions=["ledger"])

def test_two(sqlite, local_broker):
    assert local_broker("sqlite") is sqlite
    assert sqlite.name("payments") != sqlite.name("payments")
    assert len(sqlite.name("p" * 60)) <= 38
"""
NO_ENGINE = """
def test_needs_it(kafka):
    raise AssertionError("reached")
"""
UNKNOWN = """
def test_needs_it(local_broker):
    local_broker("nosuch")
"""


def session(folder: Path, code: str, **env: str) -> str:
    (folder / "test_it.py").write_text(code)
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | env
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(folder)],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        cwd=folder,
    )
    return done.stdout + done.stderr


def test_a_plugin_with_a_local_broker_has_a_fixture_of_its_name(tmp_path):
    assert "2 passed" in session(tmp_path, SQLITE)


def test_a_broker_that_cannot_be_had_skips_and_says_what_would_help(tmp_path):
    said = session(tmp_path, NO_ENGINE, BROKERKIT_PROVIDER="installed", KAFKA_HOME="")
    assert "1 skipped" in said
    assert "set KAFKA_HOME to an unpacked Kafka 4" in said


def test_in_ci_it_fails_unless_the_machine_lacks_it_by_its_nature(tmp_path):
    without = f"{tmp_path}/nowhere.sock"
    excused = session(tmp_path, NO_ENGINE, CI="true", BROKERKIT_PROVIDER="docker", DOCKER_HOST=f"unix://{without}")
    assert "1 skipped" in excused
    assert "start a Docker engine" in excused
    offline = {"CI": "true", "BROKERKIT_PROVIDER": "recipe", "BROKERKIT_CACHE": str(tmp_path / "cache")}
    offline |= {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    failed = session(tmp_path, NO_ENGINE, **offline)
    assert "1 error" in failed
    assert "in CI a broker that cannot be had is a failure" in failed


def test_a_target_that_does_not_exist_fails_with_the_ones_that_do(tmp_path):
    said = session(tmp_path, UNKNOWN)
    assert "no local broker is called 'nosuch'; there are:" in said


def test_the_plugin_itself_imports_nothing_heavy():
    code = (
        "import sys, importlib.util as u\n"
        "import pytest\n"
        "before = set(sys.modules)\n"
        "spec = u.find_spec('brokerkit')\n"
        "path = spec.submodule_search_locations[0] + '/local/pytest_plugin.py'\n"
        "module = u.module_from_spec(u.spec_from_file_location('plugin', path))\n"
        "module.__spec__.loader.exec_module(module)\n"
        "module._names()\n"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(eval(done.stdout))
    assert not loaded & {"brokerkit", "pydantic", "pluggy_plugins", "psutil", "rich", "filelock", "confluent_kafka"}


@pytest.mark.parametrize("topic", ["payments", "p" * 38])
def test_names_are_portable_topic_names(topic):
    from brokerkit.local.fixtures import TestBroker
    from brokerkit.local.targets import target

    assert 3 <= len(TestBroker(target("sqlite")).name(topic)) <= 38
