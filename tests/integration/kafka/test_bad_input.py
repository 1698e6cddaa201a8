"""What a user gets wrong, and what brokerkit says to it: the cause, the cure, in time."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from confluent_kafka import Producer

import brokerkit
from brokerkit import errors
from brokerkit.local.contract import LocalBroker


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


def redeclared(broker: brokerkit.Broker, topic: str, **native: object) -> None:
    broker.declare(topic, ["work"])
    broker.declare(topic, ["work"], native=native)


def redeclared_attempts(broker: brokerkit.Broker, topic: str) -> None:
    broker.declare(topic, ["work"], attempts=3)
    broker.declare(topic, ["work"], attempts=4)


def transactions_apart(broker: brokerkit.Broker, topic: str) -> None:
    broker.declare(topic, ["work"], retry="topic")
    broker.transactions(topic, subscription="work")


Act = Callable[[brokerkit.Broker, str], object]
BAD: dict[str, tuple[Act, type[Exception], str]] = {
    "missing topic, sending": (lambda b, t: b.producer(t), errors.NotFound, "declare it"),
    "missing topic, receiving": (lambda b, t: b.consumer(t, subscription="work"), errors.NotFound, "declare it"),
    "missing topic, depth": (lambda b, t: b.depth(t, "work"), errors.NotFound, "declare it"),
    "missing subscription": (
        lambda b, t: (b.declare(t), b.consumer(t, subscription="work")),
        errors.PositionLost,
        "no committed offset",
    ),
    "missing subscription, depth": (lambda b, t: (b.declare(t), b.depth(t, "work")), errors.NotFound, "declare it"),
    "body of the wrong type": (lambda b, t: send(b, t, "text"), errors.ConfigurationError, "encode"),
    "header of the wrong type": (lambda b, t: send(b, t, b"", headers={"n": 1}), errors.ConfigurationError, "'n'"),
    "reserved header": (
        lambda b, t: send(b, t, b"", headers={"brokerkit-id": "x"}),
        errors.ConfigurationError,
        "reserved",
    ),
    "key of the wrong type": (lambda b, t: send(b, t, b"", key=b"k"), errors.ConfigurationError, "key"),
    "too large": (lambda b, t: send(b, t, b"x" * 1_500_000), errors.SendRefused, "too large"),
    "delayed send": (lambda b, t: send(b, t, b"", delay=1.0), errors.ConfigurationError, "delay"),
    "guarantee unknown": (lambda b, t: producer(b, t, guarantee="always"), errors.ConfigurationError, "always"),
    "guarantee not offered": (
        lambda b, t: consumer(b, t, guarantee="exactly_once"),
        errors.GuaranteeNotOffered,
        "transactions",
    ),
    "negative timeout": (
        lambda b, t: producer(b, t, delivery_timeout=-1),
        errors.ConfigurationError,
        "not negative",
    ),
    "prefetch of nothing": (lambda b, t: consumer(b, t, prefetch=0), errors.ConfigurationError, "prefetch"),
    "topic name": (lambda b, t: b.declare("a--b"), errors.ConfigurationError, "portable name"),
    "subscription name": (lambda b, t: b.declare(t, ["x"]), errors.ConfigurationError, "portable name"),
    "unknown native setting": (
        lambda b, t: b.declare(t, native={"colour": "red"}),
        errors.ConfigurationError,
        "colour",
    ),
    "native setting of the wrong type": (
        lambda b, t: b.declare(t, native={"partitions": "many"}),
        errors.ConfigurationError,
        "partitions",
    ),
    "topic setting that Kafka refuses": (
        lambda b, t: b.declare(t, native={"config": {"cleanup.policy": "nonsense"}}),
        errors.ConfigurationError,
        "cleanup.policy",
    ),
    "more replicas than nodes": (
        lambda b, t: b.declare(t, native={"replication": 3}),
        errors.ConfigurationError,
        "replication",
    ),
    "other partitions than there are": (
        lambda b, t: redeclared(b, t, partitions=7),
        errors.ConfigurationError,
        "partitions=4",
    ),
    "other attempts than there are": (redeclared_attempts, errors.ConfigurationError, "attempts=3"),
    "send after close": (used_after_close, errors.Closed, "closed"),
    "settled twice": (settled_twice, errors.AlreadySettled, "settled before"),
    "settled after close": (settled_after_close, errors.Closed, "given back"),
    "transactions on a topic that is not there": (
        lambda b, t: b.transactions(t, subscription="work"),
        errors.NotFound,
        "does not exist; declare it first",
    ),
    "transactions with a retry topic": (transactions_apart, errors.ConfigurationError, "retry topic"),
}


@pytest.mark.integration
@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_told_with_its_cause(broker: brokerkit.Broker, topic: str, name: str) -> None:
    act, error, words = BAD[name]
    began = time.monotonic()
    with pytest.raises(error, match=f"(?i){words}") as caught:
        act(broker, topic)
    assert time.monotonic() - began < 15, f"{caught.value} took too long"


WRONG_URLS: dict[str, tuple[str, type[Exception], str]] = {
    "unknown option": ("?colour=red", errors.ConfigurationError, "colour.*known.*session_timeout"),
    "option of the wrong type": ("?partitions=many", errors.ConfigurationError, "partitions"),
    "unknown client option": ("?client.colour=red", errors.ConfigurationError, "colour"),
    "auto commit": ("?client.enable.auto.commit=true", errors.ConfigurationError, "loses messages"),
    "group in client options": ("?client.group.id=g", errors.ConfigurationError, "subscription"),
    "idempotence with acks=1": (
        "?client.acks=1&client.enable.idempotence=true",
        errors.ConfigurationError,
        "acks=all",
    ),
    "client option of the other group protocol": (
        "?group_protocol=consumer&client.session.timeout.ms=6000",
        errors.ConfigurationError,
        "session.timeout.ms",
    ),
    "SASL without a user": ("?sasl_mechanism=PLAIN", errors.ConfigurationError, "user and password"),
    "TLS authority that is not there": ("?tls_ca=missing.pem", errors.ConfigurationError, "missing.pem|ssl"),
}


@pytest.mark.integration
@pytest.mark.parametrize("name", WRONG_URLS)
def test_a_wrong_url_is_told_with_its_cause(url: str, topic: str, name: str) -> None:
    query, error, words = WRONG_URLS[name]
    with pytest.raises(error, match=f"(?is){words}"):
        with brokerkit.connect(url.partition("?")[0] + query) as broker:
            broker.declare(topic, ["work"])


def test_exactly_once_needs_acks_of_all() -> None:
    with brokerkit.connect("kafka://localhost?client.acks=1") as broker:
        with pytest.raises(errors.GuaranteeNotOffered, match="exactly_once"):
            broker.producer("abc", "exactly_once")


@pytest.mark.parametrize("host", ["127.0.0.1:1", "nowhere.invalid:9092"])
def test_a_wrong_host_is_told_within_the_timeout(host: str) -> None:
    began = time.monotonic()
    with brokerkit.connect(f"kafka://{host}") as broker:
        with pytest.raises(errors.ConnectionLost, match=r"(?i)refused|resolve|no answer|down"):
            broker.producer("abc", timeout=2.0)
    assert time.monotonic() - began < 12  # the machine may be busy


@pytest.mark.integration
def test_a_wrong_password_is_told_at_once_and_never_shown(start: Callable[..., LocalBroker], topic: str) -> None:
    secure = start(secure=True)
    right = secure.url()
    with brokerkit.connect(right) as broker:
        broker.declare(topic, ["work"])
        send(broker, topic, b"over TLS, by SASL")
    user, _, rest = right.removeprefix("kafka://").partition(":")
    wrong = f"kafka://{user}:not-the-secret@{rest.rpartition('@')[2]}"
    began = time.monotonic()
    with brokerkit.connect(wrong) as broker:
        with pytest.raises(errors.AccessRefused) as caught:
            broker.producer(topic)
    assert "not-the-secret" not in f"{caught.value!r} {broker!r} {broker.driver!r}"
    assert time.monotonic() - began < 10


@pytest.mark.integration
def test_what_a_foreign_producer_wrote_raises_nothing(broker: brokerkit.Broker, url: str, topic: str) -> None:
    broker.declare(topic, ["work"], native={"partitions": 1})
    foreign = Producer({"bootstrap.servers": url.removeprefix("kafka://").partition("?")[0]})
    headers = [("text", b"ok"), ("bytes", b"\xff\xfe"), ("none", None), ("brokerkit-bytes", b"{nonsense")]
    foreign.produce(topic, b"\xff\xfe", key=b"\xff", headers=headers)
    foreign.produce(topic, None, key=b"tombstone")
    foreign.produce(topic, b"", headers=[("brokerkit-id", b"\xff"), ("brokerkit-attempt", b"many")])
    foreign.flush(10)
    with broker.consumer(topic, subscription="work") as made:
        found = []
        while len(found) < 3:
            batch = made.receive(10, timeout=10)
            assert batch, "nothing more came"
            found += batch
        broken, tombstone, bad_id = found
        assert (broken.body, broken.id_source, tombstone.body) == (b"\xff\xfe", "native", None)
        assert broken.key is not None
        assert broken.key.encode("utf-8", "surrogateescape") == b"\xff"
        assert dict(broken.headers) == {"text": "ok", "bytes": b"\xff\xfe", "none": b""}
        assert len({delivery.id for delivery in found}) == 3
        assert (bad_id.id_source, bad_id.attempt, bad_id.content_type) == ("native", None, None)
        for delivery in found:
            delivery.ack()
        assert made.flush(10) == 0
