"""What ends or stops a session: consumer timeouts, alarms, a killed node, TLS; and attaching to what exists."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest

import brokerkit
from brokerkit import errors
from brokerkit.guarantees import FailurePoint, Likelihood
from brokerkit.local.contract import LocalBroker

from .conftest import VERSIONS

pytestmark = pytest.mark.integration

Start = Callable[..., LocalBroker]


def until(done: Callable[[], object], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


class Events:
    def __init__(self) -> None:
        self.seen: list[brokerkit.Event] = []

    def __call__(self, event: brokerkit.Event) -> None:
        self.seen.append(event)

    def kinds(self) -> list[str]:
        return [str(event.kind) for event in self.seen]


@pytest.fixture(scope="module", params=["rabbitmq", "rabbitmq:4.0", "rabbitmq:3.10"])
def impatient(request: pytest.FixtureRequest, start: Start) -> str:
    """A node that lets a consumer hold a message for two seconds; 4.3 asks the queue instead."""
    return start(request.param, settings={"consumer_timeout": "2000"}).url()


def test_a_handler_slower_than_the_consumer_timeout_is_told_and_the_consumer_goes_on(
    impatient: str, topic: str
) -> None:
    """Told within two seconds of the broker's decision, which shows in that another consumer gets the message."""
    events = Events()
    with brokerkit.connect(impatient) as broker:
        broker.declare(topic, ["sub"], handling_seconds=2.0)
        with broker.producer(topic) as producer:
            producer.send(b"slow").result(10)
            with broker.consumer(topic, subscription="sub", on_event=events) as consumer:
                (slow,) = consumer.receive(1, 10)
                assert not slow.lease.lost
                with broker.consumer(topic, subscription="sub") as other:
                    (again,) = other.receive(1, 30)
                    decided = time.monotonic()
                    until(lambda: slow.lease.lost and "lease_lost" in events.kinds(), 2.0)
                    assert time.monotonic() - decided < 2.0
                    assert (again.body, again.lease.lost) == (b"slow", False)
                    with pytest.raises(errors.LeaseLost):
                        slow.ack()
                    assert slow.state == "lost"
                    again.ack()
                    assert other.flush(10) == 0
                    assert again.state == "settled"
                producer.send(b"next").result(10)
                (following,) = consumer.receive(1, 30)
                assert following.body == b"next"
                following.ack()
                assert consumer.flush(10) == 0
        broker.delete(topic)


@pytest.fixture(scope="module")
def mortal(start: Start) -> LocalBroker:
    """A node to be killed."""
    return start("rabbitmq")


def test_both_ends_survive_a_killed_node(mortal: LocalBroker, topic: str) -> None:
    events = Events()
    with brokerkit.connect(mortal.url(), on_event=events, client={"heartbeat": "2"}) as broker:
        broker.declare(topic, ["sub"])
        with broker.producer(topic) as producer, broker.consumer(topic, subscription="sub") as consumer:
            receipts = producer.send_many([b"before %d" % number for number in range(200)])
            mortal.kill()
            receipts += producer.send_many([b"while %d" % number for number in range(200)])
            mortal.restart()
            receipts += producer.send_many([b"after %d" % number for number in range(200)])
            assert producer.flush(40) == 0
            assert {receipt.state for receipt in receipts} == {"confirmed"}
            seen: set[str] = set()
            deadline = time.monotonic() + 40
            while len(seen) < 600 and time.monotonic() < deadline:
                for delivery in consumer.receive(100, 1.0):
                    seen.add(delivery.id)
                    delivery.ack()
            assert seen == {receipt.id for receipt in receipts}
        assert events.kinds().count("disconnected") == events.kinds().count("reconnected") == 2
        broker.delete(topic)


def killed_once_confirmed(node: LocalBroker, topic: str, *, wait: float | None = None, delay: float = 0.0) -> int:
    """Declares, sends 50, kills the node as soon as they are confirmed; how many are there after its restart."""
    options = {} if wait is None else {"new_queue_wait": str(wait)}
    with brokerkit.connect(node.url(), **options) as broker:
        broker.declare(topic, ["sub"])
        with broker.producer(topic) as producer:
            for receipt in [producer.send(b"%d" % number, delay=delay) for number in range(50)]:
                receipt.result(10)
            node.kill()
            node.restart()
        time.sleep(delay)
        seen: set[str] = set()
        with broker.consumer(topic, subscription="sub") as consumer:
            while deliveries := consumer.receive(100, 3.0):
                seen.update(delivery.id for delivery in deliveries)
                for delivery in deliveries:
                    delivery.ack()
        broker.delete(topic)
    return len(seen)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_confirmed_survives_a_kill_although_its_queue_is_new(start: Start, version: str, topic: str) -> None:
    node = start(version)
    assert killed_once_confirmed(node, topic) == 50
    assert killed_once_confirmed(node, f"{topic}-late", delay=2.0) == 50


def test_without_the_wait_a_kill_takes_a_new_queue_with_it(start: Start, topic: str) -> None:
    """The hole is RabbitMQ's; once this fails, the wait is of no use any more."""
    node = start("rabbitmq")
    assert killed_once_confirmed(node, topic, wait=0) == 0
    with brokerkit.connect(f"{node.url()}?new_queue_wait=0") as broker:
        assert broker.claims().points[FailurePoint.BROKER_KILLED].loss is Likelihood.POSSIBLE


def test_an_alarm_blocks_sends_until_it_is_over(mortal: LocalBroker, topic: str) -> None:
    node = mortal._broker  # type: ignore[attr-defined]
    events = Events()
    with brokerkit.connect(mortal.url()) as broker:
        broker.declare(topic, ["sub"])
        with broker.producer(topic, on_event=events) as producer:
            producer.send(b"before").result(10)
            node.ctl("set_vm_memory_high_watermark", "absolute", "1")
            try:
                receipt = producer.send(b"during")
                until(lambda: "blocked" in events.kinds())
                with pytest.raises(TimeoutError):
                    receipt.result(1.0)
            finally:
                node.ctl("set_vm_memory_high_watermark", "0.6")
            receipt.result(20)
            producer.send(b"after").result(20)
            until(lambda: "unblocked" in events.kinds())
        broker.delete(topic)


# ---------------------------------------------------------------- TLS and SASL


@pytest.fixture(scope="module")
def guarded(start: Start) -> str:
    return start("rabbitmq", secure=True).url()


def test_messages_go_both_ways_through_tls_and_a_password(guarded: str, topic: str) -> None:
    with brokerkit.connect(guarded) as broker:
        assert broker.describe()["tls"] == "yes"
        broker.declare(topic, ["sub"])
        with broker.producer(topic) as producer, broker.consumer(topic, subscription="sub") as consumer:
            bodies = [b"%d" % number * 1000 for number in range(200)]
            producer.send_many(bodies)
            assert producer.flush(20) == 0
            found: list[Any] = []
            until(lambda: found.extend(consumer.receive(100, 0.5)) or len(found) == 200)
            assert [each.body for each in found] == bodies
            for delivery in found:
                delivery.ack()
            assert consumer.flush(10) == 0
        broker.delete(topic)


def test_a_wrong_password_is_refused_and_shows_nowhere(guarded: str, caplog: pytest.LogCaptureFixture) -> None:
    before, _, after = guarded.partition("@")
    wrong = f"{before.rpartition(':')[0]}:wrong-secret@{after}"
    with brokerkit.connect(wrong) as broker:
        with pytest.raises(errors.AccessRefused) as raised:
            broker.describe()
    assert "wrong-secret" not in str(raised.value) + caplog.text


def test_a_certificate_nobody_vouches_for_is_refused(guarded: str) -> None:
    with brokerkit.connect(guarded.partition("?")[0]) as broker:
        with pytest.raises(errors.ConnectionLost, match=r"(?i)certificate"):
            broker.describe()
    with brokerkit.connect(guarded.partition("?")[0] + "?tls_verify=false") as broker:
        assert broker.describe()["product"] == "RabbitMQ"


# ---------------------------------------------------------------- what exists already


@pytest.fixture
def raw(newest: str) -> Iterator[Any]:
    host, port = newest.split("://")[1].split(":")
    with pika.BlockingConnection(pika.ConnectionParameters(host, int(port))) as connection:
        yield connection.channel()


def test_an_existing_exchange_and_queue_are_used_as_they_are(newest: str, raw: Any, topic: str) -> None:
    exchange, queue = f"{topic}.events", f"{topic}.in"
    raw.exchange_declare(exchange, "topic", durable=True)
    raw.queue_declare(queue, durable=True, arguments={"x-max-length": 1000})
    raw.queue_bind(queue, exchange, "orders.*")
    with brokerkit.connect(newest) as broker:
        native = {"exchange": exchange, "routing_key": "orders.new"}
        with broker.producer("orders", native=native) as producer:
            producer.send(b"mine", id="id-1", key="k", content_type="text/plain").result(10)
        with broker.producer("orders", native={**native, "routing_key": "elsewhere"}) as producer:
            with pytest.raises(errors.SendRefused, match="unroutable"):
                producer.send(b"lost").result(10)
        raw.basic_publish(exchange, "orders.old", b"theirs", pika.BasicProperties(type="t"))
        with broker.consumer("orders", subscription="in", native={"queue": queue}) as consumer:
            found: list[Any] = []
            until(lambda: found.extend(consumer.receive(2, 0.5)) or len(found) == 2)
            assert [(each.body, each.id_source) for each in found] == [(b"mine", "producer"), (b"theirs", "none")]
            found[0].ack()
            found[1].nack(delay=0.1)
            (again,) = consumer.receive(1, 10)
            assert (again.body, again.attempt) == (b"theirs", 2)
            again.ack()
            assert consumer.flush(10) == 0
        claim = broker.claims().points[FailurePoint.BROKER_KILLED]
        assert claim.loss is Likelihood.POSSIBLE
        assert any("attached" in note for note in broker.claims().properties.notes)
    raw.queue_delete(queue)
    raw.exchange_delete(exchange)


def test_a_raw_client_reads_what_was_sent_and_is_read(newest: str, raw: Any, topic: str) -> None:
    with brokerkit.connect(newest) as broker:
        broker.declare(topic, ["sub"])
        with broker.producer(topic) as producer:
            producer.send(
                b"body", id="id-1", key="ключ", headers={"t": "ü", "b": b"\xff"}, content_type="application/json"
            ).result(10)
        method, properties, body = raw.basic_get(f"{topic}--sub")
        raw.basic_ack(method.delivery_tag)
        assert (body, properties.message_id, properties.content_type) == (b"body", "id-1", "application/json")
        assert properties.delivery_mode == 2
        assert abs(properties.timestamp - time.time()) < 60
        assert properties.headers["t"] == "ü"
        assert properties.headers["b"] == b"\xff"
        assert properties.headers["brokerkit-key"] == "ключ"
        assert properties.headers["brokerkit-published-at"] // 1000 == properties.timestamp
        broker.delete(topic)


# ---------------------------------------------------------------- weaker settings say so


def test_transient_messages_on_a_classic_queue_are_claimed_as_lost_with_the_node(newest: str) -> None:
    with brokerkit.connect(f"{newest}?queue=classic&persistent=false") as broker:
        assert broker.claims().points[FailurePoint.BROKER_KILLED].loss is Likelihood.EXPECTED
    with brokerkit.connect(f"{newest}?queue=classic") as broker:
        assert broker.claims().points[FailurePoint.BROKER_KILLED].loss is Likelihood.NEVER
        assert broker.claims().properties.durable == "broker_kill"


def test_a_classic_queue_counts_attempts_by_republishing(newest: str, topic: str) -> None:
    with brokerkit.connect(f"{newest}?queue=classic") as broker:
        broker.declare(topic, ["sub"], attempts=3)
        with broker.producer(topic) as producer, broker.consumer(topic, subscription="sub") as consumer:
            producer.send(b"poison").result(10)
            for attempt in (1, 2, 3):
                (delivery,) = consumer.receive(1, 10)
                assert delivery.attempt == attempt
                delivery.nack()
            with broker.consumer(f"{topic}-dead", subscription="dead") as dead:
                (delivery,) = dead.receive(1, 10)
                assert "attempt 3 of 3" in (delivery.dead_reason or "")
                delivery.ack()
                assert dead.flush(10) == 0
        broker.delete(topic)
        broker.delete(f"{topic}-dead")


def test_no_thread_is_left_behind(newest: str, topic: str) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with brokerkit.connect(newest) as broker:
        broker.declare(topic, ["sub"])
        for _ in range(5):
            with broker.producer(topic) as producer, broker.consumer(topic, subscription="sub") as consumer:
                producer.send(b"x").result(10)
                consumer.receive(1, 10)[0].ack()
        broker.delete(topic)
    assert {thread.name for thread in threading.enumerate()} <= before
