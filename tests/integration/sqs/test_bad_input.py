"""What a user gets wrong, and what brokerkit says to it: the cause, the cure, in time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

import brokerkit
from brokerkit import errors


def consumer(broker: brokerkit.Broker, topic: str, **options: object) -> None:
    broker.declare(topic, ["work"])
    broker.consumer(topic, subscription="work", **options).close()


def producer(broker: brokerkit.Broker, topic: str, **options: object) -> brokerkit.Producer:
    broker.declare(topic, ["work"])
    return broker.producer(topic, **options)


def send(broker: brokerkit.Broker, topic: str, *arguments: object, **options: object) -> None:
    with producer(broker, topic) as made:
        made.send(*arguments, **options).result(10)


def used_after_close(broker: brokerkit.Broker, topic: str) -> None:
    made = producer(broker, topic)
    made.close()
    made.send(b"late")


def settled_twice(broker: brokerkit.Broker, topic: str) -> None:
    send(broker, topic, b"body")
    with broker.consumer(topic, subscription="work") as made:
        (delivery,) = made.receive(1, timeout=10)
        delivery.ack()
        delivery.ack()


def settled_after_close(broker: brokerkit.Broker, topic: str) -> None:
    send(broker, topic, b"body")
    with broker.consumer(topic, subscription="work") as made:
        (delivery,) = made.receive(1, timeout=10)
    delivery.ack()


def rejected_without_dead_letters(broker: brokerkit.Broker, topic: str) -> None:
    send(broker, topic, b"body")
    with broker.consumer(topic, subscription="work") as made:
        (delivery,) = made.receive(1, timeout=10)
        delivery.reject("no use")


def redeclared(broker: brokerkit.Broker, topic: str, **options: object) -> None:
    broker.declare(topic, ["work"], attempts=3)
    broker.declare(topic, ["work"], **options)


def redeclared_attributes(broker: brokerkit.Broker, topic: str) -> None:
    broker.declare(topic, ["work"], native={"attributes": {"DelaySeconds": 1}})
    broker.declare(topic, ["work"], native={"attributes": {"DelaySeconds": 2}})


def queue_gone(broker: brokerkit.Broker, topic: str) -> None:
    with producer(broker, topic, delivery_timeout=5.0) as made:
        broker.delete(topic)
        made.send(b"").result(10)


Act = Callable[[brokerkit.Broker, str], object]
BAD: dict[str, tuple[Act, type[Exception], str]] = {
    "missing topic, sending": (lambda b, t: b.producer(t), errors.NotFound, "declare it"),
    "missing topic, receiving": (lambda b, t: b.consumer(t, subscription="work"), errors.NotFound, "declare it"),
    "missing topic, depth": (lambda b, t: b.depth(t, "work"), errors.NotFound, "declare it"),
    "topic without a subscription": (lambda b, t: (b.declare(t), b.producer(t)), errors.NotFound, "no subscription"),
    "missing subscription": (
        lambda b, t: (b.declare(t, ["work"]), b.consumer(t, subscription="other")),
        errors.NotFound,
        "declare it",
    ),
    "body of the wrong type": (lambda b, t: send(b, t, "text"), errors.ConfigurationError, "encode"),
    "header of the wrong type": (lambda b, t: send(b, t, b"", headers={"n": 1}), errors.ConfigurationError, "'n'"),
    "reserved header": (
        lambda b, t: send(b, t, b"", headers={"brokerkit-id": "x"}),
        errors.ConfigurationError,
        "reserved",
    ),
    "too large": (lambda b, t: send(b, t, b"x" * 1_100_000), errors.SendRefused, "1048576 are allowed"),
    "bytes too large as base64": (lambda b, t: send(b, t, b"\xff" * 800_000), errors.SendRefused, "as base64"),
    "headers too large": (
        lambda b, t: send(b, t, b"x" * 1_000_000, headers={"h": "v" * 100_000}),
        errors.SendRefused,
        "with its attributes",
    ),
    "delay above the cap": (lambda b, t: send(b, t, b"", delay=901), errors.SendRefused, "900 s at most"),
    "queue deleted under a producer": (queue_gone, errors.SendRefused, "QueueDoesNotExist|not exist"),
    "guarantee unknown": (lambda b, t: producer(b, t, guarantee="always"), errors.ConfigurationError, "always"),
    "exactly once, sending": (
        lambda b, t: producer(b, t, guarantee="exactly_once"),
        errors.GuaranteeNotOffered,
        "at_least_once",
    ),
    "exactly once, receiving": (
        lambda b, t: consumer(b, t, guarantee="exactly_once"),
        errors.GuaranteeNotOffered,
        "transactions",
    ),
    "negative timeout": (lambda b, t: producer(b, t, delivery_timeout=-1), errors.ConfigurationError, "not negative"),
    "prefetch of nothing": (lambda b, t: consumer(b, t, prefetch=0), errors.ConfigurationError, "prefetch"),
    "topic name": (lambda b, t: b.declare("a--b"), errors.ConfigurationError, "portable name"),
    "subscription name": (lambda b, t: b.declare(t, ["x"]), errors.ConfigurationError, "portable name"),
    "FIFO by name": (
        lambda b, t: b.consumer("orders", subscription="any", native={"queue": "orders.fifo"}),
        errors.NotSupported,
        "FIFO.*standard",
    ),
    "FIFO by URL": (
        lambda b, t: b.producer("orders", native={"queue_url": "http://localhost/0/orders.fifo"}),
        errors.NotSupported,
        "FIFO.*standard",
    ),
    "unknown native setting": (
        lambda b, t: b.declare(t, ["work"], native={"colour": "red"}),
        errors.ConfigurationError,
        "colour.*attributes",
    ),
    "native setting of the wrong type": (
        lambda b, t: b.declare(t, ["work"], native={"attributes": "many"}),
        errors.ConfigurationError,
        "attributes.*dictionary",
    ),
    "attribute that SQS refuses": (
        lambda b, t: b.declare(t, ["work"], native={"attributes": {"DelaySeconds": "soon"}}),
        errors.BrokerkitError,
        "creating queue",
    ),
    "attached queue that is not there": (
        lambda b, t: b.consumer("any", subscription="any", native={"queue": t}),
        errors.NotFound,
        "looking up queue",
    ),
    "two subscriptions without SNS": (
        lambda b, t: b.declare(t, ["one", "two"]),
        errors.NotSupported,
        "no SNS.*sns_endpoint_url",
    ),
    "a second subscription without SNS": (
        lambda b, t: (b.declare(t, ["one"]), b.declare(t, ["two"])),
        errors.NotSupported,
        "no SNS",
    ),
    "start at the earliest": (
        lambda b, t: b.declare(t, ["work"], start="earliest"),
        errors.NotSupported,
        "declare the subscription before",
    ),
    "retry that blocks": (lambda b, t: b.declare(t, ["work"], retry="block"), errors.ConfigurationError, "block"),
    "other attempts than there are": (
        lambda b, t: redeclared(b, t, attempts=4),
        errors.ConfigurationError,
        "attempts=3, not 4",
    ),
    "other attributes than there are": (redeclared_attributes, errors.ConfigurationError, "DelaySeconds='1', not '2'"),
    "send after close": (used_after_close, errors.Closed, "closed"),
    "settled twice": (settled_twice, errors.AlreadySettled, "settled before"),
    "settled after close": (settled_after_close, errors.Closed, "given back"),
    "rejected without dead letters": (rejected_without_dead_letters, errors.NotSupported, "attempts="),
    "transactions": (
        lambda b, t: b.transactions(t, subscription="work"),
        errors.NotSupported,
        "no transactions",
    ),
}


@pytest.mark.integration
@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_told_with_its_cause(broker: brokerkit.Broker, topic: str, name: str) -> None:
    act, error, words = BAD[name]
    began = time.monotonic()
    with pytest.raises(error, match=f"(?is){words}") as caught:
        act(broker, topic)
    assert time.monotonic() - began < 15, f"{caught.value} took too long"


@pytest.mark.parametrize("host", ["127.0.0.1:1", "nowhere.invalid:9324"])
def test_a_wrong_host_is_told_within_the_timeout(host: str) -> None:
    began = time.monotonic()
    with brokerkit.connect(f"sqs://a:b@{host}/eu-west-1") as broker:
        with pytest.raises(errors.ConnectionLost, match=r"(?i)connect"):
            broker.producer("abc", timeout=2.0)
    assert time.monotonic() - began < 12


def test_an_endpoint_that_never_answers_is_told_within_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with brokerkit.connect(f"sqs://a:b@127.0.0.1:{silent.getsockname()[1]}/eu-west-1") as broker:
            with pytest.raises(errors.ConnectionLost, match="within 1 s"):
                broker.producer("abc", timeout=1.0)
        assert time.monotonic() - began < 5
