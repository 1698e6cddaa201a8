"""ElasticMQ and moto, one each for the session, and a topic of one's own on either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import boto3
import pytest

import brokerkit
from brokerkit.local.fixtures import TestBroker

QUICK = "&lease_seconds=2&wait_seconds=1&request_timeout=5"


@pytest.fixture
def topic(sqs: TestBroker) -> str:
    return sqs.name("t")


@pytest.fixture
def broker(sqs: TestBroker, topic: str) -> Iterator[brokerkit.Broker]:
    with brokerkit.connect(sqs.url + QUICK) as opened:
        yield opened
        opened.delete(topic)
        opened.delete(f"{topic}-dead")


@pytest.fixture
def moto(local_broker: Callable[..., TestBroker], topic: str) -> Iterator[brokerkit.Broker]:
    with brokerkit.connect(local_broker("sqs:moto").url + QUICK) as opened:
        yield opened
        opened.delete(topic)


@pytest.fixture
def raw(sqs: TestBroker):
    """boto3's own client of the same ElasticMQ."""
    return client(sqs.url)


def client(url: str):
    parts = urlsplit(url)
    return boto3.client(
        "sqs",
        endpoint_url=f"http://{parts.hostname}:{parts.port}",
        region_name=parts.path.strip("/"),
        aws_access_key_id=parts.username,
        aws_secret_access_key=parts.password,
    )
