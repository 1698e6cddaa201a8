"""What a user gets wrong, and what brokerkit says to it: the cause, the cure, in time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from google.cloud import pubsub_v1

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


def nacked_for_long(broker: brokerkit.Broker, topic: str) -> None:
    send(broker, topic, b"body")
    with broker.consumer(topic, subscription="work") as made:
        (delivery,) = made.receive(1, timeout=10)
        delivery.nack(delay=601)


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


def rejected_without_dead_letters(broker: brokerkit.Broker, topic: str) -> None:
    send(broker, topic, b"body")
    with broker.consumer(topic, subscription="work") as made:
        (delivery,) = made.receive(1, timeout=10)
        delivery.reject("no")


Act = Callable[[brokerkit.Broker, str], object]
BAD: dict[str, tuple[Act, type[Exception], str]] = {
    "missing topic, sending": (lambda b, t: b.producer(t), errors.NotFound, "declare it"),
    "missing topic, receiving": (lambda b, t: b.consumer(t, subscription="work"), errors.NotFound, "declare it"),
    "missing topic, depth": (lambda b, t: b.depth(t, "work"), errors.NotFound, "declare it"),
    "missing subscription": (
        lambda b, t: (b.declare(t), b.consumer(t, subscription="work")),
        errors.NotFound,
        "declare it",
    ),
    "depth": (lambda b, t: (b.declare(t, ["work"]), b.depth(t, "work")), errors.NotSupported, "Cloud Monitoring"),
    "body of the wrong type": (lambda b, t: send(b, t, "text"), errors.ConfigurationError, "encode"),
    "header of the wrong type": (lambda b, t: send(b, t, b"", headers={"n": 1}), errors.ConfigurationError, "'n'"),
    "reserved header": (
        lambda b, t: send(b, t, b"", headers={"brokerkit-id": "x"}),
        errors.ConfigurationError,
        "reserved",
    ),
    "headers beyond all attributes": (
        lambda b, t: send(b, t, b"", headers={"h": "v" * 200_000}),
        errors.SendRefused,
        "attributes",
    ),
    "key of the wrong type": (lambda b, t: send(b, t, b"", key=b"k"), errors.ConfigurationError, "key"),
    "key too long": (lambda b, t: send(b, t, b"", key="k" * 2000), errors.SendRefused, "key is longer"),
    "too large": (lambda b, t: send(b, t, b"x" * 10_000_000), errors.SendRefused, "too large"),
    "delayed send": (lambda b, t: send(b, t, b"", delay=1.0), errors.ConfigurationError, "delay"),
    "nack delayed too long": (nacked_for_long, errors.NotSupported, "600 s at most"),
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
    "at most once without exactly-once delivery": (
        lambda b, t: consumer(b, t, guarantee="at_most_once"),
        errors.GuaranteeNotOffered,
        "at_least_once",
    ),
    "negative timeout": (lambda b, t: producer(b, t, delivery_timeout=-1), errors.ConfigurationError, "not negative"),
    "prefetch of nothing": (lambda b, t: consumer(b, t, prefetch=0), errors.ConfigurationError, "prefetch"),
    "less prefetch than topics": (
        lambda b, t: b.consumer(t, f"{t}-b", subscription="work", prefetch=1),
        errors.ConfigurationError,
        "one for each topic",
    ),
    "topic name": (lambda b, t: b.declare("a--b"), errors.ConfigurationError, "portable name"),
    "subscription name": (lambda b, t: b.declare(t, ["x"]), errors.ConfigurationError, "portable name"),
    "unknown native setting": (lambda b, t: b.declare(t, native={"colour": 1}), errors.ConfigurationError, "colour"),
    "native setting of the wrong type": (
        lambda b, t: b.declare(t, ["work"], native={"ack_deadline": "long"}),
        errors.ConfigurationError,
        "ack_deadline",
    ),
    "setting that Pub/Sub refuses": (
        lambda b, t: b.declare(t, ["work"], native={"ack_deadline": 700}),
        errors.ConfigurationError,
        "ack_deadline",
    ),
    "filter that Pub/Sub refuses": (
        lambda b, t: b.declare(t, ["work"], native={"filter": "nonsense ("}),
        errors.ConfigurationError,
        "filter",
    ),
    "earliest on a topic that keeps nothing": (
        lambda b, t: b.declare(t, ["work"], start="earliest"),
        errors.ConfigurationError,
        "topic_retention",
    ),
    "retry as on a partitioned broker": (
        lambda b, t: b.declare(t, ["work"], retry="topic"),
        errors.ConfigurationError,
        "leave it out",
    ),
    "too many attempts": (
        lambda b, t: b.declare(t, ["work"], attempts=101),
        errors.ConfigurationError,
        "at most 100",
    ),
    "another ack deadline than there is": (
        lambda b, t: redeclared(b, t, ack_deadline=20),
        errors.ConfigurationError,
        "ack_deadline=3",
    ),
    "ordering where there is none": (
        lambda b, t: redeclared(b, t, ordering=True),
        errors.ConfigurationError,
        "ordering=False",
    ),
    "other attempts than there are": (redeclared_attempts, errors.ConfigurationError, "attempts=3"),
    "send after close": (used_after_close, errors.Closed, "closed"),
    "settled twice": (settled_twice, errors.AlreadySettled, "settled before"),
    "settled after close": (settled_after_close, errors.Closed, "given back"),
    "rejected without dead letters": (rejected_without_dead_letters, errors.NotSupported, "no dead letters"),
    "transactions": (lambda b, t: b.transactions(t, subscription="work"), errors.NotSupported, "no transactions"),
}


@pytest.mark.integration
@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_told_with_its_cause(broker: brokerkit.Broker, topic: str, name: str) -> None:
    act, error, words = BAD[name]
    began = time.monotonic()
    with pytest.raises(error, match=f"(?i){words}") as caught:
        act(broker, topic)
    assert time.monotonic() - began < 15, f"{caught.value} took too long"


WRONG_URLS: dict[str, tuple[str, str]] = {
    "no project": ("pubsub://", "names the project"),
    "project that cannot be one": ("pubsub://My_Project", "not a project id"),
    "user and password": ("pubsub://user:hush-hush@abc", "chain"),
    "path": ("pubsub://abc/topic", "no path"),
    "unknown option": ("pubsub://abc?colour=red", "colour.*known.*emulator_host"),
    "option of the wrong type": ("pubsub://abc?ack_deadline=long", "ack_deadline"),
    "ack deadline out of range": ("pubsub://abc?ack_deadline=601", "ack_deadline"),
    "emulator as a URL": ("pubsub://abc?emulator_host=http://localhost:1", "host:port"),
    "emulator and endpoint": ("pubsub://abc?emulator_host=localhost:1&endpoint=e.example", "emulator"),
    "unknown client option": ("pubsub://abc?client.colour=red", "grpc"),
    "retries below brokerkit": ("pubsub://abc?client.grpc.enable_retries=1", "every attempt"),
}


@pytest.mark.parametrize("name", WRONG_URLS)
def test_a_wrong_url_is_told_with_its_cause(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    url, words = WRONG_URLS[name]
    with pytest.raises(errors.ConfigurationError, match=f"(?is){words}") as caught:
        brokerkit.connect(url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1:1", "nowhere.invalid:8085"])
def test_a_wrong_host_is_told_within_the_timeout(host: str) -> None:
    began = time.monotonic()
    with brokerkit.connect(f"pubsub://abc?emulator_host={host}") as broker:
        with pytest.raises(errors.ConnectionLost):
            broker.producer("abc", timeout=2.0)
    assert time.monotonic() - began < 12  # the machine may be busy


def test_credentials_that_are_missing_or_wrong_are_told_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PUBSUB_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    with brokerkit.connect(f"pubsub://abc?credentials_file={tmp_path}/missing.json") as broker:
        with pytest.raises(errors.ConfigurationError, match=r"missing\.json"):
            broker.producer("abc", timeout=2.0)
    wrong = tmp_path / "key.json"
    wrong.write_text(json.dumps({"type": "service_account", "private_key": "hush-hush"}))
    with brokerkit.connect(f"pubsub://abc?credentials_file={wrong}") as broker:
        with pytest.raises(errors.BrokerkitError) as caught:
            broker.producer("abc", timeout=2.0)
    assert "hush" not in f"{caught.value!r} {broker!r} {broker.driver!r}"


@pytest.mark.integration
def test_what_a_foreign_producer_wrote_raises_nothing(
    broker: brokerkit.Broker, url: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = urlsplit(url)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", parse_qs(parts.query)["emulator_host"][0])
    broker.declare(topic, ["work"])
    foreign = pubsub_v1.PublisherClient(
        publisher_options=pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
    )
    path = foreign.topic_path(parts.netloc, topic)
    broken = {"brokerkit-published-at": "soon", "brokerkit-headers-0": "{nonsense", "text": "größe"}
    sent = [
        foreign.publish(path, b"\xff\xfe", ordering_key="key", text="ok").result(10),
        foreign.publish(path, b"", only="attributes").result(10),
        foreign.publish(path, b"broken", **broken).result(10),
    ]
    foreign.stop()
    found: list[brokerkit.Delivery] = []
    with broker.consumer(topic, subscription="work") as made:
        while len(found) < 3:
            batch = made.receive(10, timeout=10)
            assert batch, "nothing more came"
            found += batch
        by_id = {delivery.id: delivery for delivery in found}
        assert sorted(by_id) == sorted(sent)
        keyed, empty, odd = (by_id[id] for id in sent)
        assert (keyed.body, keyed.key, keyed.id_source, dict(keyed.headers)) == (
            b"\xff\xfe",
            "key",
            "native",
            {"text": "ok"},
        )
        assert (empty.body, dict(empty.headers)) == (b"", {"only": "attributes"})
        assert (odd.headers["text"], odd.attempt, odd.content_type) == ("größe", None, None)
        assert abs(odd.published_at - time.time() * 1000) < 300_000
        for delivery in found:
            delivery.ack()
        assert made.flush(10) == 0
