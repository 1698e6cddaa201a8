"""What users get wrong: each row raises an error that names the cause and the cure, in time."""

# ruff: noqa: E501

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest

import brokerkit
from brokerkit import errors
from brokerkit.local.contract import LocalBroker

pytestmark = pytest.mark.integration


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def describe(url: str) -> None:
    with brokerkit.connect(url) as broker:
        broker.describe()


def at(url: str, user: str = "", path: str = "", query: str = "") -> str:
    """`url` with other parts."""
    host = url.split("://")[1].split("@")[-1].split("/")[0].split("?")[0]
    return f"rabbitmq://{user}{host}{path}{query}"


ROWS: list[tuple[str, Callable[[str, str], Any], type[Exception], str]] = [
    ("wrong port", lambda url, _: describe(f"rabbitmq://127.0.0.1:{closed_port()}"), errors.ConnectionLost, "127.0.0.1:.*refused"),
    ("unknown host", lambda url, _: describe("rabbitmq://no-such-host.invalid"), errors.ConnectionLost, "no-such-host.invalid:5672"),
    ("wrong password", lambda url, _: describe(at(url, "guest:wrong-secret@")), errors.AccessRefused, "password"),
    ("missing vhost", lambda url, _: describe(at(url, path="/nowhere")), errors.NotFound, "vhost nowhere not found"),
    ("TLS to a port without", lambda url, _: describe(at(url, query="?tls=true")), errors.ConnectionLost, "127.0.0.1"),
    ("unknown option", lambda url, _: brokerkit.connect(at(url, query="?qeue=quorum")), errors.ConfigurationError, "qeue.*known: .*queue"),
    ("unknown queue type", lambda url, _: brokerkit.connect(at(url, query="?queue=stream")), errors.ConfigurationError, "quorum"),
    ("unknown client option", lambda url, _: brokerkit.connect(at(url, query="?client.heart=1")), errors.ConfigurationError, "client.heartbeat"),
    ("client option of a wrong type", lambda url, _: brokerkit.connect(at(url, query="?client.heartbeat=often")), errors.ConfigurationError, "whole seconds"),
    ("client option out of range", lambda url, _: brokerkit.connect(at(url, query="?client.frame_max=1")), errors.ConfigurationError, "frame_max"),
    ("missing certificate file", lambda url, _: brokerkit.connect(at(url, query="?tls=true&tls_ca=/nowhere.pem")), errors.ConfigurationError, "tls_ca"),
    ("port that is no number", lambda url, _: brokerkit.connect("rabbitmq://localhost:amqp"), errors.ConfigurationError, "65535"),
    ("missing topic, producer", lambda url, topic: used(url, lambda b: b.producer(topic)), errors.NotFound, "topic-"),
    ("missing topic, consumer", lambda url, topic: used(url, lambda b: b.consumer(topic, subscription="sub")), errors.NotFound, "topic-.*--sub"),
    ("missing topic, depth", lambda url, topic: used(url, lambda b: b.depth(topic, "sub")), errors.NotFound, "declare it first"),
    ("exactly once, producer", lambda url, topic: used(url, lambda b: b.producer(topic, "exactly_once")), errors.GuaranteeNotOffered, "at_least_once"),
    ("exactly once, consumer", lambda url, topic: used(url, lambda b: b.consumer(topic, subscription="sub", guarantee="exactly_once")), errors.GuaranteeNotOffered, "transactions"),
    ("transactions", lambda url, topic: used(url, lambda b: b.transactions(topic, subscription="sub")), errors.NotSupported, "transactions"),
    ("start at the beginning", lambda url, topic: used(url, lambda b: b.declare(topic, ["sub"], start="earliest")), errors.NotSupported, "before the first send"),
    ("retry by blocking", lambda url, topic: used(url, lambda b: b.declare(topic, ["sub"], retry="block")), errors.NotSupported, "leave retry out"),
    ("unknown native setting", lambda url, topic: used(url, lambda b: b.declare(topic, ["sub"], native={"max-length": 3})), errors.ConfigurationError, "x-…"),
    ("native setting of a wrong type", lambda url, topic: used(url, lambda b: b.declare(topic, ["sub"], native={"x-max-length": "many"})), errors.ConfigurationError, "x-max-length"),
    ("declared twice, differently", lambda url, topic: used(url, lambda b: [b.declare(topic, ["sub"], attempts=n) for n in (3, 4)]), errors.ConfigurationError, "never changed.*x-delivery-limit"),
    ("attach to a missing queue", lambda url, topic: used(url, lambda b: b.consumer(topic, subscription="x", native={"queue": "not-there"})), errors.NotFound, "not-there"),
    ("attach to a missing exchange", lambda url, topic: used(url, lambda b: b.producer(topic, native={"exchange": "not-there"})), errors.NotFound, "not-there"),
    ("portable name", lambda url, _: used(url, lambda b: b.declare("a--b", ["sub"])), errors.ConfigurationError, "portable"),
    ("body of a wrong type", lambda url, topic: sent(url, topic, {"a": 1}), errors.ConfigurationError, "json.dumps"),
    ("too large", lambda url, topic: sent(url, topic, b"x" * (16 * 1024 * 1024 + 1)), errors.SendRefused, "max_body_bytes"),
    ("header of a wrong type", lambda url, topic: sent(url, topic, b"x", headers={"n": 1}), errors.ConfigurationError, "'n'"),
    ("header name too long", lambda url, topic: sent(url, topic, b"x", headers={"n" * 256: "v"}), errors.SendRefused, "255"),
    ("headers larger than a frame", lambda url, topic: sent(url, topic, b"x", headers={"n": "v" * 200_000}), errors.SendRefused, "frames hold"),
    ("negative delay", lambda url, topic: sent(url, topic, b"x", delay=-1.0), errors.ConfigurationError, "delay"),
    ("delay of years", lambda url, topic: sent(url, topic, b"x", delay=1e9), errors.SendRefused, "at most"),
    ("negative timeout", lambda url, topic: used(url, lambda b: b.producer(topic, timeout=-1)), errors.ConfigurationError, "timeout"),
    ("use after close", lambda url, topic: closed(url).declare(topic), errors.Closed, "closed"),
]  # fmt: skip


def used(url: str, use: Callable[[brokerkit.Broker], Any]) -> None:
    with brokerkit.connect(url) as broker:
        use(broker)


def sent(url: str, topic: str, body: Any, **options: Any) -> None:
    with brokerkit.connect(url) as broker:
        broker.declare(topic, ["sub"])
        try:
            with broker.producer(topic) as producer:
                producer.send(body, **options).result(10)
        finally:
            broker.delete(topic)


def closed(url: str) -> brokerkit.Broker:
    broker = brokerkit.connect(url)
    broker.close()
    return broker


@pytest.mark.parametrize(("use", "error", "says"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_wrong_input_is_an_error_that_names_cause_and_cure(
    newest: str, topic: str, use: Callable[[str, str], Any], error: type[Exception], says: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(error, match=says) as raised:
        use(newest, topic)
    assert time.monotonic() - begun < 15
    assert "wrong-secret" not in str(raised.value)
    with brokerkit.connect(newest) as broker:
        broker.delete(topic, "sub")
        broker.delete(topic)


def test_a_host_that_is_silent_is_given_up_in_time(silent: int) -> None:
    begun = time.monotonic()
    with brokerkit.connect(f"rabbitmq://127.0.0.1:{silent}") as broker:
        with pytest.raises(errors.ConnectionLost, match=f"127.0.0.1:{silent}"):
            broker.producer("topic", timeout=1.0)
    assert time.monotonic() - begun < 6


def test_the_next_node_is_taken_where_the_first_is_down(newest: str) -> None:
    with brokerkit.connect(newest.replace("://", f"://127.0.0.1:{closed_port()},")) as broker:
        assert broker.describe()["product"] == "RabbitMQ"


FOREIGN: list[tuple[str, dict[str, Any], dict[str, str | bytes]]] = [
    ("flag", {"h": True}, {"h": "true"}),
    ("number", {"h": -5}, {"h": "-5"}),
    ("nothing", {"h": None}, {"h": ""}),
    ("list", {"h": [1, "a", [True]]}, {"h": '[1, "a", [true]]'}),
    ("table", {"h": {"a": {"b": 1}}}, {"h": '{"a": {"b": 1}}'}),
    ("bytes", {"h": b"\xff\x00"}, {"h": b"\xff\x00"}),
]


@pytest.mark.parametrize(("given", "expected"), [row[1:] for row in FOREIGN], ids=[row[0] for row in FOREIGN])
def test_foreign_headers_are_read_by_the_table(
    newest: str, topic: str, given: dict[str, Any], expected: dict[str, str | bytes]
) -> None:
    with brokerkit.connect(newest) as broker:
        broker.declare(topic, ["sub"])
        raw_publish(newest, topic, pika.BasicProperties(headers=given))
        with broker.consumer(topic, subscription="sub") as consumer:
            (delivery,) = consumer.receive(1, 10)
            assert dict(delivery.headers) == expected
            assert delivery.native.properties.headers == given
            assert delivery.id_source == "none"
            assert delivery.id == delivery.id
            assert delivery.published_at == 0
            delivery.ack()
        broker.delete(topic)


def test_text_that_is_not_utf8_raises_nowhere(newest: str, topic: str) -> None:
    with brokerkit.connect(newest) as broker:
        broker.declare(topic, ["sub"])
        raw_publish(newest, topic, pika.BasicProperties(message_id=b"\xffid", content_type=b"\xfe", headers={}))
        with broker.consumer(topic, subscription="sub") as consumer:
            (delivery,) = consumer.receive(1, 10)
            assert (delivery.id, delivery.content_type, delivery.key) == ("\\xffid", "\\xfe", None)
            assert dict(delivery.headers) == {}
            delivery.ack()
        broker.delete(topic)


def raw_publish(url: str, exchange: str, properties: pika.BasicProperties) -> None:
    host, port = url.split("://")[1].split("/")[0].split(":")
    with pika.BlockingConnection(pika.ConnectionParameters(host, int(port))) as connection:
        connection.channel().basic_publish(exchange, "", b"body", properties)


def test_use_after_a_fork_is_an_error_by_name(newest: str, topic: str) -> None:
    with brokerkit.connect(newest) as broker:
        broker.declare(topic, ["sub"])
        with broker.producer(topic) as producer:
            producer.send(b"x").result(10)
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    producer.send(b"y")
                except errors.Forked:
                    os.write(writer, b"forked")
                finally:
                    os._exit(0)
            os.close(writer)
            os.waitpid(child, 0)
            assert os.read(reader, 10) == b"forked"
            os.close(reader)
            producer.send(b"z").result(10)
        broker.delete(topic)


def test_a_secret_shows_in_no_repr(running: Callable[[str], LocalBroker]) -> None:
    broker = brokerkit.connect("rabbitmq://me:very-secret@localhost")
    assert "very-secret" not in f"{broker!r} {broker.driver!r} {vars(broker.driver)!r}"
    broker.close()
