"""Leases, ordering keys, dead letters, attached names and a server that goes away, on Google's fake."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from google.cloud import pubsub_v1

import brokerkit
from brokerkit.errors import GuaranteeNotOffered, LeaseLost
from brokerkit.local.contract import LocalBroker
from brokerkit.local.targets import target

pytestmark = pytest.mark.integration
LEASE = 3.0


def until(true: Callable[[], bool], timeout: float = 20.0) -> bool:
    give_up = time.monotonic() + timeout
    while not true():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


def fill(broker: brokerkit.Broker, topic: str, count: int, **options: object) -> list[str]:
    with broker.producer(topic) as producer:
        receipts = [producer.send(b"x", id=f"m{number}", **options) for number in range(count)]
        assert producer.flush(20) == 0
    assert {receipt.state for receipt in receipts} == {"confirmed"}
    return [receipt.id for receipt in receipts]


def take(consumer: brokerkit.Consumer, count: int, timeout: float = 20.0) -> list[brokerkit.Delivery]:
    found: list[brokerkit.Delivery] = []
    give_up = time.monotonic() + timeout
    while len(found) < count and time.monotonic() < give_up:
        found += consumer.receive(count - len(found), timeout=0.5)
    return found


def test_a_handler_that_burns_cpu_for_three_leases_loses_none_of_a_hundred(
    broker: brokerkit.Broker, topic: str
) -> None:
    broker.declare(topic, ["work"])
    ids = fill(broker, topic, 101)
    events: list[str] = []
    with broker.consumer(topic, subscription="work", on_event=lambda event: events.append(str(event.kind))) as consumer:
        [first] = consumer.receive(1, timeout=10)
        ends_at = time.monotonic() + 3.2 * LEASE
        burners = [threading.Thread(target=_burn, args=(ends_at,)) for _ in range(3)]
        for burner in burners:
            burner.start()
        _burn(ends_at)
        for burner in burners:
            burner.join()
        first.ack()
        with broker.consumer(topic, subscription="work") as other:
            assert other.receive(10, timeout=1.5) == []
        rest = take(consumer, 100)
        for delivery in rest:
            delivery.ack()
        assert consumer.flush(10) == 0
        assert {delivery.state for delivery in (first, *rest)} == {"settled"}
        assert sorted(delivery.id for delivery in (first, *rest)) == sorted(ids)
        assert consumer.receive(10, timeout=LEASE + 1.5) == []
    assert "lease_lost" not in events


def _burn(until: float) -> None:
    """Pure Python that holds the interpreter lock whenever it may."""
    number = 0
    while time.monotonic() < until:
        for _ in range(20_000):
            number = (number * 31 + 7) % 1_000_003


def test_a_lease_that_is_renewed_no_longer_is_lost_and_the_ack_says_so(broker: brokerkit.Broker, topic: str) -> None:
    broker.declare(topic, ["work"])
    fill(broker, topic, 1)
    with broker.consumer(topic, subscription="work", max_lease=0.0) as consumer:
        [delivery] = consumer.receive(1, timeout=10)
        with broker.consumer(topic, subscription="work") as other:
            [again] = take(other, 1)
            assert again.id == delivery.id
            try:
                delivery.ack()
            except LeaseLost:
                pass
            assert until(lambda: delivery.state == "lost")
            again.ack()
            assert other.flush(10) == 0
            assert again.state == "settled"


def test_a_delayed_nack_comes_again_no_earlier(broker: brokerkit.Broker, topic: str) -> None:
    broker.declare(topic, ["work"])
    fill(broker, topic, 2)
    with broker.consumer(topic, subscription="work") as consumer:
        by_id = {delivery.id: delivery for delivery in take(consumer, 2)}
        began = time.monotonic()
        by_id["m0"].nack()
        by_id["m1"].nack(delay=2.5)
        first, second = take(consumer, 1), take(consumer, 1)
        assert [delivery.id for delivery in (*first, *second)] == ["m0", "m1"]
        assert time.monotonic() - began >= 2.5
        for delivery in (*first, *second):
            delivery.ack()
        assert consumer.flush(10) == 0


def test_messages_of_a_key_arrive_in_the_send_order(url: str, topic: str) -> None:
    with brokerkit.connect(url + "&ordering=true") as broker:
        broker.declare(topic, ["work"])
        assert broker.claims().properties.order == "per_key"
        with broker.producer(topic) as producer:
            producer.send_many(brokerkit.Message(b"x", f"{key}-{n}", key) for n in range(12) for key in ("a", "b"))
            assert producer.flush(20) == 0
        seen: dict[str, list[int]] = {"a": [], "b": []}
        with broker.consumer(topic, subscription="work") as consumer:
            give_up = time.monotonic() + 40
            while sum(map(len, seen.values())) < 24 and time.monotonic() < give_up:
                for delivery in consumer.receive(10, timeout=1):
                    key, _, number = delivery.id.partition("-")
                    assert delivery.key == key
                    seen[key].append(int(number))
                    delivery.ack()
            assert consumer.flush(10) == 0
        assert seen == {"a": list(range(12)), "b": list(range(12))}


def test_attempts_and_dead_letters_are_known_to_a_consumer_that_declared_nothing(
    broker: brokerkit.Broker, url: str, topic: str
) -> None:
    broker.declare(topic, ["work"], attempts=2)
    fill(broker, topic, 1)
    with brokerkit.connect(url) as other, other.consumer(topic, subscription="work") as consumer:
        for attempt in (1, 2):
            [delivery] = take(consumer, 1)
            assert delivery.attempt == attempt
            delivery.nack()
        with other.consumer(f"{topic}-dead", subscription="dead") as coroner:
            [dead] = take(coroner, 1)
            assert (dead.id, dead.dead_reason) == ("m0", "attempt 2 of 2 failed")
            dead.ack()
            assert coroner.flush(10) == 0


def test_at_most_once_needs_exactly_once_delivery_and_acks_before_the_handler(url: str, topic: str) -> None:
    with brokerkit.connect(url) as broker:
        broker.declare(topic, ["plain"])
    with brokerkit.connect(url + "&exactly_once=true") as broker:
        broker.declare(topic, ["work"])
        with pytest.raises(GuaranteeNotOffered, match="exactly-once delivery"):
            broker.consumer(topic, subscription="plain", guarantee="at_most_once")
        fill(broker, topic, 5)
        with broker.consumer(topic, subscription="work", guarantee="at_most_once") as consumer:
            assert len(take(consumer, 5)) == 5
        with broker.consumer(topic, subscription="work") as consumer:
            assert consumer.receive(10, timeout=LEASE + 2) == []


def test_the_retention_is_the_subscription_s_once_it_was_looked_at(broker: brokerkit.Broker, topic: str) -> None:
    assert broker.claims().properties.retention_seconds == 31 * 86_400, "unread, it may be the most there is"
    broker.declare(topic, subscriptions=["work"], native={"retention": 1200})
    with broker.consumer(topic, subscription="work"):
        assert broker.claims().properties.retention_seconds == 1200


def test_native_names_are_taken_as_they_are(
    broker: brokerkit.Broker, url: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = urlsplit(url)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", parse_qs(parts.query)["emulator_host"][0])
    path = f"projects/another-project/topics/{topic}.native"
    subscription = f"projects/another-project/subscriptions/{topic}.reader"
    with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
        publisher.create_topic(name=path)
        subscriber.create_subscription(name=subscription, topic=path, ack_deadline_seconds=17)
        with broker.producer("theirs", native={"topic": path}) as producer:
            assert producer.send(b"x", id="ours").result(10)
        with broker.consumer("theirs", subscription="any", native={"subscription": subscription}) as consumer:
            [delivery] = take(consumer, 1)
            assert (delivery.id, delivery.lease.seconds, delivery.topic) == ("ours", 17.0, "theirs")
            delivery.ack()
            assert consumer.flush(10) == 0
    assert broker.claims().properties.lease_seconds == 17


def test_one_consumer_reads_several_topics(broker: brokerkit.Broker, topic: str) -> None:
    topics = [topic, f"{topic}-b"]
    for name in topics:
        broker.declare(name, ["work"])
        fill(broker, name, 20)
    with broker.consumer(*topics, subscription="work", prefetch=10) as consumer:
        found = set()
        give_up = time.monotonic() + 20
        while len(found) < 40 and time.monotonic() < give_up:
            for delivery in consumer.receive(10, timeout=1):
                found.add((delivery.topic, delivery.id))
                delivery.ack()
        assert consumer.flush(10) == 0
    assert len(found) == 40


@pytest.fixture
def mortal(tmp_path: Path) -> LocalBroker:
    """An emulator of the test's own."""
    made = target("pubsub:pstest")
    made.provision()
    made.start(tmp_path)
    yield made
    made.stop()


def test_a_server_that_stops_and_answers_again_is_followed(mortal: LocalBroker, topic: str) -> None:
    events: list[str] = []
    with brokerkit.connect(mortal.url() + "&ack_deadline=3") as broker:
        broker.declare(topic, ["work"])
        with (
            broker.producer(topic, delivery_timeout=60) as producer,
            broker.consumer(topic, subscription="work", on_event=lambda e: events.append(str(e.kind))) as consumer,
        ):
            receipt = producer.send(b"before", id="before")
            receipt.result(10)
            [held] = take(consumer, 1)
            mortal.pause()
            assert until(lambda: _stopped(mortal.pids()[0]))
            sent = producer.send(b"meanwhile", id="meanwhile")
            held.ack()
            assert until(lambda: {"trouble", "disconnected"} & set(events), 40)
            assert sent.state == "pending"
            assert held.state in ("sent", "unknown")
            mortal.resume()
            assert until(lambda: {"recovered", "reconnected"} & set(events), 40)
            assert sent.result(40)
            assert until(lambda: _answered(consumer, "meanwhile"), 30)


def _stopped(pid: int) -> bool:
    """Whether every thread of the process stands still; SIGSTOP reaches them one by one."""
    states = [
        task.joinpath("stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()
    ]
    return set(states) == {"T"}


def _answered(consumer: brokerkit.Consumer, id: str) -> bool:
    found = consumer.receive(10, timeout=0.5)
    for delivery in found:
        delivery.ack()
    return id in {delivery.id for delivery in found}


def test_a_consumer_is_told_when_its_server_is_gone(mortal: LocalBroker, topic: str) -> None:
    events: list[str] = []
    with brokerkit.connect(mortal.url() + "&ack_deadline=3") as broker:
        broker.declare(topic, ["work"])
        fill(broker, topic, 1)
        with broker.consumer(topic, subscription="work", on_event=lambda e: events.append(str(e.kind))) as consumer:
            [held] = take(consumer, 1)
            mortal.stop()
            assert until(lambda: "trouble" in events, 5)
            assert until(lambda: "disconnected" in events, 20)
            with pytest.raises(LeaseLost):
                held.ack()
            assert consumer.state == "disconnected"


def test_plain_client_programs_find_the_emulator_by_its_environment(broker: brokerkit.Broker, url: str) -> None:
    assert broker.describe()["product"] == "Google Pub/Sub emulator"
    assert "an emulator" in " ".join(broker.claims().properties.notes)
