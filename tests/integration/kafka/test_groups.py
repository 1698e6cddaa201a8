"""Members of a group: what moves is committed or handed out again, nothing is lost, nothing stale is committed."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer as RawConsumer
from confluent_kafka import ConsumerGroupTopicPartitions, Producer
from confluent_kafka.admin import AdminClient, NewPartitions

import brokerkit
from brokerkit import errors
from brokerkit.local.contract import LocalBroker

pytestmark = pytest.mark.integration

PROTOCOLS = {
    "cooperative": "session_timeout=6",
    "eager": "session_timeout=6&assignor=range",
    "broker-side": "group_protocol=consumer",
}


def servers(url: str) -> str:
    return url.removeprefix("kafka://").partition("?")[0]


def until(done: Callable[[], object], timeout: float = 40.0) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def fill(broker: brokerkit.Broker, topic: str, count: int, keys: int = 50) -> set[str]:
    with broker.producer(topic) as producer:
        receipts = [producer.send(b"%d" % n, key=f"key-{n % keys}") for n in range(count)]
        assert producer.flush(30) == 0
    assert {receipt.state for receipt in receipts} == {"confirmed"}
    return {receipt.id for receipt in receipts}


class Member:
    """A consumer on a thread of its own that acks all it gets, slowly enough to be interrupted."""

    def __init__(self, broker: brokerkit.Broker, topic: str, seen: Counter[str]) -> None:
        self.consumer = broker.consumer(topic, subscription="work", prefetch=50)
        self.seen = seen
        self.count = 0
        self._leave = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self._leave.is_set():
            for delivery in self.consumer.receive(10, timeout=0.1):
                self.seen[delivery.id] += 1
                self.count += 1
                time.sleep(0.0005)
                try:
                    delivery.ack()
                except errors.LeaseLost:
                    pass
        self.consumer.close(20)

    def leave(self) -> None:
        self._leave.set()
        self.thread.join(40)
        assert not self.thread.is_alive(), "a member did not close"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_members_that_come_and_go_lose_nothing(url: str, topic: str, protocol: str) -> None:
    seen: Counter[str] = Counter()
    with brokerkit.connect(f"{url.partition('?')[0]}?{PROTOCOLS[protocol]}") as broker:
        broker.declare(topic, ["work"])
        sent = fill(broker, topic, 6000)
        first = Member(broker, topic, seen)
        until(lambda: first.count > 300)
        second = Member(broker, topic, seen)
        until(lambda: second.count > 100)
        first.leave()
        third = Member(broker, topic, seen)
        until(lambda: len(seen) == len(sent), 60)
        second.leave()
        third.leave()
        assert set(seen) == sent
        assert sum(seen.values()) - len(sent) < 300, "an orderly rebalance commits what was handled"
        assert broker.depth(topic, "work") == 0


def test_a_member_that_stood_still_over_a_rebalance_goes_on(url: str, topic: str) -> None:
    options = "session_timeout=6&assignor=range&revoke_timeout=0.5"
    with brokerkit.connect(f"{url.partition('?')[0]}?{options}") as broker:
        broker.declare(topic, ["work"], native={"partitions": 2})
        fill(broker, topic, 200)
        with broker.consumer(topic, subscription="work", prefetch=1) as first:
            (held,) = first.receive(1, timeout=10)
            receiver = first._session.receiver
            until(lambda: all(lane.paused for lane in receiver._lanes.values()))
            with broker.consumer(topic, subscription="work", prefetch=1):
                until(lambda: held.state == "lost")
                assert first.receive(1, timeout=20), "its partition stayed paused"


def test_acks_out_of_order_commit_no_further_than_the_first_open_one(broker: brokerkit.Broker, topic: str) -> None:
    broker.declare(topic, ["work"], native={"partitions": 1})
    fill(broker, topic, 10)
    with broker.consumer(topic, subscription="work") as consumer:
        deliveries = []
        while len(deliveries) < 10:
            deliveries += consumer.receive(10, timeout=10)
        for delivery in deliveries[3:]:
            delivery.ack()
        deliveries[0].ack()
        until(lambda: deliveries[0].state == "settled")
        assert broker.depth(topic, "work") == 9
        assert {delivery.state for delivery in deliveries[3:]} == {"settling"}
    assert {delivery.state for delivery in deliveries[3:]} == {"lost"}, "what lies behind a gap comes again"
    with broker.consumer(topic, subscription="work") as consumer:
        again = []
        while len(again) < 9:
            again += consumer.receive(10, timeout=10)
        assert [delivery.body for delivery in again] == [b"%d" % n for n in range(1, 10)]


def test_a_blocking_nack_keeps_the_order_of_its_partition(broker: brokerkit.Broker, topic: str) -> None:
    broker.declare(topic, ["work"], retry="block", native={"partitions": 1})
    fill(broker, topic, 20)
    order: list[tuple[bytes | None, int | None]] = []
    with broker.consumer(topic, subscription="work") as consumer:
        while len(order) < 22:
            for delivery in consumer.receive(1, timeout=10):
                order.append((delivery.body, delivery.attempt))
                if delivery.body == b"5" and (delivery.attempt or 1) < 3:
                    delivery.nack(delay=0.3)
                else:
                    delivery.ack()
        assert consumer.flush(10) == 0
    assert order[5:8] == [(b"5", None), (b"5", 2), (b"5", 3)]
    assert [body for body, _ in order if body != b"5"] == [b"%d" % n for n in range(20) if n != 5]


def test_a_retry_topic_lets_others_pass_and_keeps_the_delay(broker: brokerkit.Broker, topic: str) -> None:
    broker.declare(topic, ["work"], retry="topic", attempts=3, native={"partitions": 1})
    fill(broker, topic, 10)
    came: list[tuple[bytes | None, int | None, float]] = []
    with broker.consumer(topic, subscription="work") as consumer:
        while len(came) < 12:
            for delivery in consumer.receive(10, timeout=10):
                came.append((delivery.body, delivery.attempt, time.monotonic()))
                assert delivery.topic == topic
                if delivery.body == b"0":
                    delivery.nack(delay=0.5)
                else:
                    delivery.ack()
        assert consumer.flush(10) == 0
    zeros = [(attempt, at) for body, attempt, at in came if body == b"0"]
    assert [attempt for attempt, _ in zeros] == [None, 2, 3]
    assert zeros[1][1] - zeros[0][1] >= 0.49
    assert came[-1][0] == b"0"
    with broker.consumer(f"{topic}-dead", subscription="dead") as dead:
        (buried,) = dead.receive(10, timeout=10)
        assert buried.body == b"0"
        assert "attempt 3 of 3" in (buried.dead_reason or "")


def test_offsets_that_are_gone_are_an_error_by_name(broker: brokerkit.Broker, url: str, topic: str) -> None:
    broker.declare(topic, ["work"])
    fill(broker, topic, 5)
    admin = AdminClient({"bootstrap.servers": servers(url)})
    admin.delete_consumer_groups([f"{topic}--work"])[f"{topic}--work"].result(10)
    with pytest.raises(errors.PositionLost, match="declare"):
        broker.consumer(topic, subscription="work")


def test_a_partition_added_later_is_read_from_its_beginning(broker: brokerkit.Broker, url: str, topic: str) -> None:
    broker.declare(topic, ["work"], native={"partitions": 1})
    admin = AdminClient({"bootstrap.servers": servers(url)})
    admin.create_partitions([NewPartitions(topic, 2)])[topic].result(10)
    raw = Producer({"bootstrap.servers": servers(url)})
    until(lambda: len(raw.list_topics(topic, timeout=5).topics[topic].partitions) == 2)
    raw.produce(topic, b"early", partition=1)
    raw.flush(10)
    with broker.consumer(topic, subscription="work") as consumer:
        (delivery,) = consumer.receive(10, timeout=15)
        assert delivery.body == b"early"
        delivery.ack()
    assert broker.depth(topic, "work") == 0


def test_an_existing_group_is_taken_as_it_is(broker: brokerkit.Broker, url: str, topic: str) -> None:
    broker.declare(topic, native={"partitions": 1})
    fill(broker, topic, 6)
    group = f"payroll.{os.getpid()}.{topic}"
    theirs = RawConsumer({"bootstrap.servers": servers(url), "group.id": group, "auto.offset.reset": "earliest"})
    theirs.subscribe([topic])
    read = 0
    while read < 2:
        read += theirs.poll(1.0) is not None
    theirs.close()
    admin = AdminClient({"bootstrap.servers": servers(url)})
    places = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(10)
    at = places.topic_partitions[0].offset
    with broker.consumer(topic, subscription="anything", native={"group": group}) as consumer:
        deliveries = consumer.receive(10, timeout=15)
        assert deliveries[0].position == brokerkit.Position(topic, 0, at)


def test_positions_are_chosen_by_the_user(broker: brokerkit.Broker, topic: str) -> None:
    broker.declare(topic, ["work"], native={"partitions": 1})
    fill(broker, topic, 10)
    with broker.consumer(
        topic, subscription="work", positions=lambda places: {p: p._replace(value=7) for p in places}
    ) as consumer:
        assert consumer.receive(10, timeout=15)[0].body == b"7"


def test_a_broker_that_restarts_ends_nothing(start: Callable[..., LocalBroker], topic: str) -> None:
    node = start()
    kinds: list[str] = []
    with brokerkit.connect(node.url(), on_event=lambda event: kinds.append(str(event.kind))) as broker:
        broker.declare(topic, ["work"])
        with broker.consumer(topic, subscription="work") as consumer, broker.producer(topic) as producer:
            producer.send(b"before").result(10)
            receipts = [producer.send(b"more") for _ in range(100)]
            node.kill()
            receipts += [producer.send(b"meanwhile") for _ in range(100)]
            node.restart()
            assert producer.flush(40) == 0
            assert {receipt.state for receipt in receipts} == {"confirmed"}
            bodies: Counter[bytes | None] = Counter()
            while bodies.total() < 201:
                batch = consumer.receive(100, timeout=40)
                assert batch, f"nothing more came after {bodies}"
                for delivery in batch:
                    bodies[delivery.body] += 1
                    delivery.ack()
            assert bodies[b"meanwhile"] >= 100
    assert "trouble" in kinds
    assert "recovered" in kinds
