"""The example program runs unchanged on six URLs, and its messages are ordinary ones to raw clients."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

import brokerkit

PROGRAM = Path(__file__).parents[3] / "examples" / "payments.py"
BODY = b'{"charge": 50}'


def program(url: str, *arguments: str) -> str:
    ended = subprocess.run([sys.executable, str(PROGRAM), url, *arguments], capture_output=True, text=True, timeout=90)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def clean() -> Iterator[Callable[[str], str]]:
    """Removes the program's topics before and after a test, on a broker that other tests share."""
    used: list[str] = []

    def remove(url: str) -> str:
        with brokerkit.connect(url) as broker:
            for topic in ("payments", "payments-dead"):
                broker.delete(topic)
        used.append(url)
        return url

    yield remove
    for url in tuple(used):
        remove(url)


def test_on_memory():
    out = program("memory://example", "--count", "100")
    assert "100 payments sent" in out
    assert "100 payments charged, $5,000" in out


def test_on_sqlite(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/queue.db"
    program(url, "send", "--count", "3")
    raw = sqlite3.connect(tmp_path / "queue.db")
    rows = raw.execute("select id, key, content_type, headers, body from published where topic = 'payments'").fetchall()
    assert [row[0] for row in rows] == ["payment-0", "payment-1", "payment-2"]
    assert rows[0][1:] == ("customer-0", "application/json", '{"currency":"USD"}', BODY)
    with raw:
        raw.execute("insert into published (topic, id, body) values ('payments', 'raw-1', ?)", (BODY,))
    raw.close()
    assert "4 payments charged, $200" in program(url, "charge", "--patience", "1")


@pytest.mark.integration
def test_on_rabbitmq(rabbitmq, clean):
    import pika

    url = clean(rabbitmq.url)
    parts = urlsplit(url)
    program(url, "send", "--count", "3")
    credentials = pika.PlainCredentials(parts.username or "guest", parts.password or "guest")
    connection = pika.BlockingConnection(
        pika.ConnectionParameters(parts.hostname, parts.port, parts.path[1:] or "/", credentials)
    )
    try:
        channel = connection.channel()
        found = [_get(channel, "payments--ledger") for _ in range(3)]
        assert [properties.message_id for _, properties, _ in found] == ["payment-0", "payment-1", "payment-2"]
        _, properties, body = found[0]
        assert (body, properties.content_type, properties.delivery_mode) == (BODY, "application/json", 2)
        assert properties.headers["currency"] == "USD"
        assert properties.headers["brokerkit-key"] == "customer-0"
        assert abs(properties.timestamp - time.time()) < 300
        channel.basic_nack(found[-1][0].delivery_tag, multiple=True, requeue=True)
        channel.confirm_delivery()
        channel.basic_publish("payments", "", BODY, pika.BasicProperties(message_id="raw-1"), mandatory=True)
    finally:
        connection.close()
    assert "4 payments charged, $200" in program(url, "charge")


def _get(channel, queue: str):
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        method, properties, body = channel.basic_get(queue)
        if method is not None:
            return method, properties, body
        time.sleep(0.02)
    raise AssertionError(f"nothing came from {queue} within 10 s")


@pytest.mark.integration
def test_on_kafka(kafka, clean):
    from confluent_kafka import Consumer, Producer

    url = clean(kafka.url)
    servers = urlsplit(url).netloc.rpartition("@")[2]
    program(url, "send", "--count", "3")
    raw = Consumer(
        {"bootstrap.servers": servers, "group.id": f"raw-{uuid.uuid4().hex}", "auto.offset.reset": "earliest"}
    )
    raw.subscribe(["payments"])
    found = {}
    give_up = time.monotonic() + 30
    while len(found) < 3 and time.monotonic() < give_up:
        message = raw.poll(0.5)
        if message is not None and message.error() is None:
            headers = dict(message.headers())
            found[headers["brokerkit-id"].decode()] = (message.key(), json.loads(message.value()), headers["currency"])
    raw.close()
    assert found == {
        f"payment-{number}": (f"customer-{number}".encode(), {"charge": 50}, b"USD") for number in range(3)
    }
    producer = Producer({"bootstrap.servers": servers})
    producer.produce("payments", BODY, key=b"customer-9")
    assert producer.flush(30) == 0
    assert "4 payments charged, $200" in program(url, "charge", "--patience", "8")


@pytest.mark.integration
def test_on_sqs(sqs, clean):
    import boto3

    url = clean(sqs.url)
    parts = urlsplit(url)
    program(url, "send", "--count", "3")
    raw = boto3.client(
        "sqs",
        endpoint_url=f"http://{parts.hostname}:{parts.port}",
        region_name=parts.path.strip("/"),
        aws_access_key_id=parts.username,
        aws_secret_access_key=parts.password,
    )
    queue = raw.get_queue_url(QueueName="payments--ledger")["QueueUrl"]
    found = {}
    give_up = time.monotonic() + 30
    while len(found) < 3 and time.monotonic() < give_up:
        answer = raw.receive_message(
            QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=1, MessageAttributeNames=["All"]
        )
        for message in answer.get("Messages", ()):
            values = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
            found[values["brokerkit-id"]] = (message["Body"].encode(), values["brokerkit-key"], values["currency"])
            raw.change_message_visibility(
                QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0 if len(found) == 3 else 5
            )
    assert found == {f"payment-{number}": (BODY, f"customer-{number}", "USD") for number in range(3)}
    raw.send_message(QueueUrl=queue, MessageBody=BODY.decode())
    assert "4 payments charged, $200" in program(url, "charge", "--patience", "8")


@pytest.mark.integration
def test_on_pubsub(pubsub, clean, monkeypatch: pytest.MonkeyPatch):
    from google.cloud import pubsub_v1

    url = clean(pubsub.url)
    parts = urlsplit(url)
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", parse_qs(parts.query)["emulator_host"][0])
    subscription = f"projects/{parts.netloc}/subscriptions/payments--ledger"
    program(url, "send", "--count", "3")
    found = {}
    with pubsub_v1.SubscriberClient() as raw:
        give_up = time.monotonic() + 20
        while len(found) < 3 and time.monotonic() < give_up:
            for one in raw.pull(subscription=subscription, max_messages=10).received_messages:
                found[one.message.attributes["brokerkit-id"]] = one.message
                raw.modify_ack_deadline(subscription=subscription, ack_ids=[one.ack_id], ack_deadline_seconds=0)
    assert sorted(found) == ["payment-0", "payment-1", "payment-2"]
    first = found["payment-0"]
    assert first.data == BODY
    assert first.attributes["currency"] == "USD"
    assert first.attributes["brokerkit-key"] == "customer-0"
    assert first.attributes["brokerkit-content-type"] == "application/json"
    publisher = pubsub_v1.PublisherClient()
    assert publisher.publish(f"projects/{parts.netloc}/topics/payments", BODY).result(20)
    publisher.stop()
    assert "4 payments charged, $200" in program(url, "charge", "--patience", "8")
