"""The plugin on ElasticMQ: what a user can see that the portable tests do not ask."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

import brokerkit
from brokerkit.driver import Position
from brokerkit.local.fixtures import TestBroker

pytestmark = pytest.mark.integration


def take(consumer: brokerkit.Consumer, count: int, timeout: float = 15.0) -> list[brokerkit.Delivery]:
    found: list[brokerkit.Delivery] = []
    deadline = time.monotonic() + timeout
    while len(found) < count and time.monotonic() < deadline:
        found += consumer.receive(count - len(found), timeout=0.5)
    assert len(found) == count, f"{len(found)} of {count} came"
    return found


def until(true, timeout: float = 15.0) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


@pytest.fixture
def declared(broker: brokerkit.Broker, topic: str) -> str:
    broker.declare(topic, ["work"])
    return topic


def url_of(raw, name: str) -> str:
    return raw.get_queue_url(QueueName=name)["QueueUrl"]


def test_ours_is_an_ordinary_message_to_boto3(broker: brokerkit.Broker, declared: str, raw):
    with broker.producer(declared) as producer:
        sent = producer.send(b'{"a": 1}', id="evt-1", key="k", headers={"tenant": "t"}, content_type="application/json")
        position = sent.result(10)
    (found,) = raw.receive_message(
        QueueUrl=url_of(raw, f"{declared}--work"), MessageAttributeNames=["All"], WaitTimeSeconds=5
    )["Messages"]
    values = {name: value["StringValue"] for name, value in found["MessageAttributes"].items()}
    assert found["Body"] == '{"a": 1}'
    assert abs(int(values.pop("brokerkit-published-at")) / 1000 - time.time()) < 300
    assert values == {
        "brokerkit-id": "evt-1",
        "brokerkit-key": "k",
        "brokerkit-content-type": "application/json",
        "tenant": "t",
    }
    assert position == Position(declared, f"{declared}--work", found["MessageId"])


def test_boto3_s_is_an_ordinary_message_to_us(broker: brokerkit.Broker, declared: str, raw):
    attributes = {"n": {"DataType": "Number", "StringValue": "7"}, "b": {"DataType": "Binary", "BinaryValue": b"\xff"}}
    sent = raw.send_message(
        QueueUrl=url_of(raw, f"{declared}--work"), MessageBody="größe", MessageAttributes=attributes
    )
    with broker.consumer(declared, subscription="work") as consumer:
        (delivery,) = take(consumer, 1)
        assert (delivery.body, dict(delivery.headers)) == ("größe".encode(), {"n": "7", "b": b"\xff"})
        assert (delivery.id, delivery.id_source, delivery.attempt) == (sent["MessageId"], "native", 1)
        assert delivery.native["MessageId"] == sent["MessageId"]
        assert abs(delivery.published_at / 1000 - time.time()) < 300
        delivery.ack()
        assert consumer.flush(10) == 0
        assert delivery.state == "settled"
    assert broker.depth(declared, "work") == 0


def test_declare_sets_the_redrive_policy_and_keeps_dead_letters_longest(broker: brokerkit.Broker, topic: str, raw):
    broker.declare(topic, ["work"], attempts=3)
    broker.declare(topic, ["work"], attempts=3)
    attributes = raw.get_queue_attributes(QueueUrl=url_of(raw, f"{topic}--work"), AttributeNames=["All"])["Attributes"]
    policy = json.loads(attributes["RedrivePolicy"])
    assert policy["maxReceiveCount"] == 3
    assert policy["deadLetterTargetArn"].endswith(f":{topic}-dead--dead")
    assert attributes["VisibilityTimeout"] == "2"


def test_a_consumer_that_was_told_nothing_knows_the_attempts_and_the_dead_letters(sqs: TestBroker, topic: str):
    with brokerkit.connect(sqs.url) as broker:
        broker.declare(topic, ["work"], attempts=2)
    with brokerkit.connect(sqs.url + "&lease_seconds=2&wait_seconds=1") as broker:
        with broker.producer(topic) as producer:
            producer.send(b"poison", id="bad").result(10)
        with broker.consumer(topic, subscription="work") as consumer:
            for attempt in (1, 2):
                (delivery,) = take(consumer, 1)
                assert delivery.attempt == attempt
                delivery.nack()
        with broker.consumer(f"{topic}-dead", subscription="dead") as dead:
            (delivery,) = take(dead, 1)
            assert (delivery.id, delivery.body) == ("bad", b"poison")
            assert delivery.dead_reason == "attempt 2 of 2 failed"
            delivery.ack()
        until(lambda: broker.depth(topic, "work") == 0)
        broker.delete(topic)
        broker.delete(f"{topic}-dead")


def test_what_no_worker_could_reject_is_moved_by_sqs_itself(broker: brokerkit.Broker, topic: str, raw):
    broker.declare(topic, ["work"], attempts=1)
    with broker.producer(topic) as producer:
        producer.send(b"crashes its worker", id="bad").result(10)
    queue = url_of(raw, f"{topic}--work")
    assert raw.receive_message(QueueUrl=queue, VisibilityTimeout=0, WaitTimeSeconds=5)["Messages"]
    with broker.consumer(topic, subscription="work") as consumer:
        assert consumer.receive(1, timeout=1.5) == []
    with broker.consumer(f"{topic}-dead", subscription="dead") as dead:
        (delivery,) = take(dead, 1)
        assert (delivery.id, delivery.dead_reason) == ("bad", None)
        delivery.ack()


def test_leases_are_kept_while_a_handler_works_the_buffer_included(broker: brokerkit.Broker, declared: str):
    with broker.producer(declared) as producer:
        producer.send_many([brokerkit.Message(b"", f"m-{n}") for n in range(40)])
        assert producer.flush(10) == 0
    with broker.consumer(declared, subscription="work") as consumer:
        (first,) = take(consumer, 1)
        with broker.consumer(declared, subscription="work") as other:
            until(lambda: len(consumer._ready) >= 39 or other.receive(1, timeout=0.1))
            taken = {delivery.id for delivery in other.receive(100, timeout=6.5)}  # three leases long
        assert first.id not in taken
        assert not first.lease.lost
        first.ack()
        assert consumer.flush(10) == 0
        assert first.state == "settled"


def test_a_handler_past_the_stated_maximum_is_told_and_its_ack_is_lost(broker: brokerkit.Broker, declared: str):
    with broker.producer(declared) as producer:
        producer.send(b"", id="slow").result(10)
    with broker.consumer(declared, subscription="work", max_lease=0.0) as consumer:
        (delivery,) = take(consumer, 1)
        (again,) = take(consumer, 1)
        assert (again.id, again.attempt) == ("slow", 2)
        assert delivery.lease.lost
        with pytest.raises(brokerkit.LeaseLost):
            delivery.ack()
        again.ack()
        assert consumer.flush(10) == 0
        assert again.state == "settled"
    assert broker.depth(declared, "work") == 0


def test_a_nack_waits_as_long_as_it_was_asked_to(broker: brokerkit.Broker, declared: str):
    with broker.producer(declared) as producer:
        producer.send(b"", id="later").result(10)
    with broker.consumer(declared, subscription="work") as consumer:
        (delivery,) = take(consumer, 1)
        began = time.monotonic()
        delivery.nack(delay=3.0)
        (again,) = take(consumer, 1)
        assert time.monotonic() - began >= 2.9
        assert again.attempt == 2
        again.ack()


def test_a_delayed_send_comes_no_earlier(broker: brokerkit.Broker, declared: str):
    with broker.producer(declared) as producer, broker.consumer(declared, subscription="work") as consumer:
        began = time.monotonic()
        producer.send(b"", delay=2.0).result(10)
        take(consumer, 1)[0].ack()
        assert time.monotonic() - began >= 1.9


def test_close_gives_back_what_nobody_looked_at_at_once(broker: brokerkit.Broker, declared: str):
    with broker.producer(declared) as producer:
        producer.send_many([brokerkit.Message(b"", f"m-{n}") for n in range(30)])
        assert producer.flush(10) == 0
    with brokerkit_slow(broker, declared) as consumer:
        take(consumer, 1)[0].ack()
        until(lambda: len(consumer._ready) >= 20)
    with broker.consumer(declared, subscription="work") as successor:
        began = time.monotonic()
        assert len({delivery.id for delivery in take(successor, 29)}) == 29
        assert time.monotonic() - began < 2.0, "they waited for their leases to run out"


def brokerkit_slow(broker: brokerkit.Broker, topic: str) -> brokerkit.Consumer:
    return broker.consumer(topic, subscription="work", prefetch=100)


def test_one_consumer_reads_several_topics(sqs: TestBroker, broker: brokerkit.Broker):
    topics = [sqs.name("t"), sqs.name("t")]
    for topic in topics:
        broker.declare(topic, ["work"])
        with broker.producer(topic) as producer:
            producer.send(topic.encode()).result(10)
    with broker.consumer(*topics, subscription="work") as consumer:
        found = take(consumer, 2)
        assert {delivery.topic: delivery.body for delivery in found} == {topic: topic.encode() for topic in topics}
        for delivery in found:
            delivery.ack()
        assert consumer.flush(10) == 0
    for topic in topics:
        assert broker.depth(topic, "work") == 0
        broker.delete(topic)


def test_an_existing_queue_is_attached_as_it_is(sqs: TestBroker, broker: brokerkit.Broker, raw):
    name = sqs.name("legacy") + "_jobs"
    url = raw.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "77"})["QueueUrl"]
    with broker.producer("jobs", native={"queue": name}) as producer:
        producer.send(b"work").result(10)
    with broker.consumer("jobs", subscription="any", native={"queue_url": url}) as consumer:
        (delivery,) = take(consumer, 1)
        assert delivery.body == b"work"
        delivery.ack()
        assert consumer.flush(10) == 0
    attributes = raw.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert attributes["VisibilityTimeout"] == "77"
    assert any("attached" in note for note in broker.claims().properties.notes)
    raw.delete_queue(QueueUrl=url)


def test_an_attached_queue_s_own_dead_letters_are_used(sqs: TestBroker, broker: brokerkit.Broker, raw):
    name = sqs.name("legacy")
    dead = raw.create_queue(QueueName=f"{name}-DLQ")["QueueUrl"]
    arn = raw.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 1})
    url = raw.create_queue(QueueName=name, Attributes={"RedrivePolicy": policy})["QueueUrl"]
    raw.send_message(QueueUrl=url, MessageBody="bad")
    with broker.consumer("jobs", subscription="any", native={"queue": name}) as consumer:
        take(consumer, 1)[0].nack()
        (found,) = raw.receive_message(QueueUrl=dead, MessageAttributeNames=["All"], WaitTimeSeconds=10)["Messages"]
    assert found["Body"] == "bad"
    assert found["MessageAttributes"]["brokerkit-dead-reason"]["StringValue"] == "attempt 1 of 1 failed"
    raw.delete_queue(QueueUrl=url)
    raw.delete_queue(QueueUrl=dead)


@pytest.fixture
def own(local_broker, tmp_path) -> Iterator[object]:
    """An ElasticMQ of the test's own, which it may kill."""
    from brokerkit.local.targets import target

    local = target("sqs:elasticmq")
    local.provision()
    local.start(tmp_path)
    yield local
    local.stop()


def test_answered_sends_and_deletes_outlive_a_killed_elasticmq(own):
    with brokerkit.connect(own.url() + "&lease_seconds=2&wait_seconds=1") as broker:
        broker.declare("payments", ["ledger"], attempts=5)
        with broker.producer("payments") as producer:
            receipts = producer.send_many([brokerkit.Message(b"", f"m-{n}") for n in range(200)])
            assert producer.flush(30) == 0
            assert {receipt.state for receipt in receipts} == {"confirmed"}
        with broker.consumer("payments", subscription="ledger") as consumer:
            gone = take(consumer, 50)
            for delivery in gone:
                delivery.ack()
            assert consumer.flush(10) == 0
            own.kill()
            own.restart()
            left = set()
            until(lambda: left.update(d.id for d in consumer.receive(100, timeout=0.5)) or len(left) >= 150, 30.0)
        assert left == {f"m-{n}" for n in range(200)} - {delivery.id for delivery in gone}


def test_the_local_url_is_what_other_programs_need(sqs: TestBroker):
    parts = urlsplit(sqs.url)
    assert parts.hostname == "127.0.0.1"
    assert (parts.scheme, parts.path) == ("sqs", "/us-east-1")
