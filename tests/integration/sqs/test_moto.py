"""The plugin on moto's server: fan-out through SNS, and what moto gets wrong."""

from __future__ import annotations

import pytest
from brokerkit_sqs.topology import SNS_LIMIT

import brokerkit
from brokerkit.errors import ConfigurationError, SendRefused

pytestmark = pytest.mark.integration


def take_all(consumer: brokerkit.Consumer, count: int) -> list[brokerkit.Delivery]:
    found: list[brokerkit.Delivery] = []
    while len(found) < count and (some := consumer.receive(count, timeout=10)):
        found += some
    return found


def test_every_subscription_gets_every_message_whole(moto: brokerkit.Broker, topic: str):
    moto.declare(topic, ["left", "right"])
    headers = {"text": "größe", "raw": b"\x00\xff", "empty": ""}
    with moto.producer(topic) as producer:
        producer.send(b"\x00body", id="evt-1", key="k", headers=headers).result(10)
    for name in ("left", "right"):
        with moto.consumer(topic, subscription=name) as consumer:
            (delivery,) = take_all(consumer, 1)
            assert (delivery.id, delivery.body, delivery.key) == ("evt-1", b"\x00body", "k")
            assert dict(delivery.headers) == headers
            delivery.ack()
            assert consumer.flush(10) == 0
        assert moto.depth(topic, name) == 0


def test_a_topic_with_one_subscription_needs_no_sns_and_says_what_a_second_one_needs(
    moto: brokerkit.Broker, topic: str
):
    moto.declare(topic, ["first"])
    with pytest.raises(ConfigurationError, match="fan_out=sns"):
        moto.declare(topic, ["second"])


def test_under_fan_out_sns_a_subscription_can_come_later(moto: brokerkit.Broker, topic: str, local_broker):
    with brokerkit.connect(local_broker("sqs:moto").url + "&fan_out=sns&wait_seconds=1") as broker:
        broker.declare(topic, ["first"])
        with broker.producer(topic) as producer:
            producer.send(b"before").result(10)
            broker.declare(topic, ["late"])
            producer.send(b"after").result(10)
        with broker.consumer(topic, subscription="late") as consumer:
            (delivery,) = take_all(consumer, 1)
            assert delivery.body == b"after"
            delivery.ack()
        assert broker.depth(topic, "first") == 2
        broker.delete(topic, "late")
        with broker.producer(topic) as producer:
            producer.send(b"for the first alone").result(10)
        assert broker.depth(topic, "first") == 3


def test_sns_s_limit_holds_for_what_goes_through_it(moto: brokerkit.Broker, topic: str):
    moto.declare(topic, ["left", "right"])
    with moto.producer(topic) as producer:
        with pytest.raises(SendRefused, match=f"{SNS_LIMIT} are allowed"):
            producer.send(b"x" * SNS_LIMIT).result(10)
    assert moto.claims().properties.max_body_bytes == SNS_LIMIT


def test_a_deleted_topic_is_gone_with_its_queues(moto: brokerkit.Broker, topic: str):
    moto.declare(topic, ["left", "right"])
    moto.delete(topic)
    with pytest.raises(brokerkit.NotFound):
        moto.producer(topic)
    moto.delete(topic)
