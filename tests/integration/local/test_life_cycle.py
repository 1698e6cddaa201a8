"""One node: started, killed, restarted on the same data, paused, stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pika.exceptions
import psutil
import pytest

from brokerkit.local.cache import cache_folder
from brokerkit.local.contract import LocalBroker, StartFailed
from brokerkit.local.ports import listening
from brokerkit.local.targets import target

from .conftest import TARGETS, client, marked, within

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Where the broker keeps what it has."""
    return tmp_path_factory.mktemp("broker")


@pytest.fixture(scope="module", params=TARGETS)
def broker(request, data) -> Iterator[LocalBroker]:
    local = target(request.param)
    local.provision()
    local.start(data / local.name.replace(":", "-"))
    yield local
    local.stop()


def test_it_serves_when_start_returns_and_says_what_it_is(broker):
    chosen = broker.provision()
    assert client(broker.name, broker.url()).answers(5)
    assert chosen.kind == "broker"
    wanted = broker.name.partition(":")[2]
    assert chosen.version.startswith(wanted)
    assert broker.pids() == [pid for pid in broker.pids() if psutil.pid_exists(pid)]


def test_300_confirmed_messages_are_there_after_a_kill_and_a_restart_at_the_same_address(broker, data):
    raw = client(broker.name, broker.url())
    raw.declare()
    assert raw.send(300) == 300
    assert within(15, lambda: raw.written_down(data / broker.name.replace(":", "-")))
    before, address = broker.pids(), broker.url()
    broker.kill()
    assert broker.pids() == [0]
    assert not psutil.pid_exists(before[0])
    broker.restart()
    assert broker.url() == address
    assert len(raw.receive(300)) == 300


def test_a_paused_broker_does_not_answer_and_a_resumed_one_does(broker):
    raw = client(broker.name, broker.url())
    broker.pause()
    assert not raw.answers(1.5)
    broker.resume()
    assert within(15, lambda: raw.answers(2))


def test_a_second_start_is_refused(broker, tmp_path):
    with pytest.raises(StartFailed, match="is started already"):
        broker.start(tmp_path)


def test_clients_that_come_by_the_proxy_are_told_the_proxys_address(tmp_path):
    from brokerkit_kafka.local import _brokers

    kafka = target("kafka")
    kafka.start(tmp_path, through=[("127.0.0.1", 7)])
    try:
        assert kafka.url(through=True) == "kafka://127.0.0.1:7"
        direct = int(kafka.url().rpartition(":")[2])
        proxied = kafka.upstream()[0][1]
        assert _brokers(proxied) == {1: 7}
        assert _brokers(direct) == {1: direct}
    finally:
        kafka.stop()


@pytest.mark.parametrize("name", ["rabbitmq", "kafka"])
def test_stop_leaves_no_process_and_no_file_outside_of_the_directory(name, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("BROKERKIT_CACHE", str(cache_folder()))
    monkeypatch.setenv("HOME", str(home))
    directory = tmp_path / "broker"
    local = target(name)
    local.start(directory)
    ports = [port for _, port in local.upstream()]
    assert marked(str(directory))
    local.stop()
    local.stop()
    assert within(10, lambda: not marked(str(directory)))
    assert not any(listening("127.0.0.1", port) for port in ports)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("name", ["rabbitmq", "rabbitmq:3.10", "kafka"])
def test_a_secure_broker_wants_tls_and_the_password_of_its_url(name, tmp_path):
    local = target(name)
    local.start(tmp_path, secure=True)
    try:
        url = local.url()
        raw = client(name, url)
        raw.declare()
        assert raw.send(3) == 3
        assert len(raw.receive(3)) == 3
        if name == "kafka":
            wrong = client(name, url.replace("brokerkit:", "brokerkit:x"))
            plain = client(name, url.partition("?")[0])
            assert not wrong.answers(3)
            assert not plain.answers(3)
        else:
            with pytest.raises(pika.exceptions.ProbableAuthenticationError):
                raw.connect(user="guest", password="guest")
            assert not raw.answers(3), "a plain connection was served"
    finally:
        local.stop()


def test_the_password_is_in_no_command_line_and_in_no_file_that_others_may_read(tmp_path):
    from urllib.parse import urlsplit

    for name in ("rabbitmq", "kafka"):
        directory = tmp_path / name
        local = target(name)
        local.start(directory, secure=True)
        try:
            password = urlsplit(local.url()).password
            assert password
            lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
            assert not any(password in line for line in lines)
            for path in directory.rglob("*"):
                if path.is_file() and password.encode() in path.read_bytes():
                    assert not path.stat().st_mode & 0o077, f"{path.relative_to(directory)} can be read by others"
        finally:
            local.stop()


def test_settings_reach_the_broker_and_a_wrong_one_fails_with_the_end_of_its_log(tmp_path):
    rabbit = target("rabbitmq")
    rabbit.start(tmp_path / "good", settings={"max_message_size": "1000"})
    try:
        raw = client("rabbitmq", rabbit.url())
        with raw.connect() as connection, pytest.raises(pika.exceptions.ChannelClosedByBroker, match="PRECONDITION"):
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish("", "x", b"x" * 2000)
    finally:
        rabbit.stop()
    with pytest.raises(StartFailed, match=r"(?s)node.log.*no_such_setting"):
        rabbit.start(tmp_path / "bad", settings={"no_such_setting": "1"})
    assert within(10, lambda: not marked(str(tmp_path / "bad")))
