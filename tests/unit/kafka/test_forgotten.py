"""A client that has lost sight of every broker is noticed, and its session ends; no broker runs here."""

from __future__ import annotations

import re
import socket
import threading
import time

import pytest
from brokerkit_kafka.claims import Facts, claims
from brokerkit_kafka.outage import Forgotten
from brokerkit_kafka.receiver import KafkaReceiver
from brokerkit_kafka.sender import KafkaSender
from brokerkit_kafka.settings import Config, KafkaSettings
from confluent_kafka import Producer

from brokerkit.driver import Traits, Unknown
from brokerkit.errors import ConnectionLost
from brokerkit.guarantees import FailurePoint, Guarantee, Likelihood
from brokerkit.plugins import Url
from brokerkit.sending import Receipt


def statistics(source: str, state: str, seconds: float = 9.0) -> str:
    age = int(seconds * 1_000_000)
    broker = f'"name":"x", "nodeid":1, "source":"{source}", "state":"{state}", "stateage":{age}, "outbuf_cnt":0'
    return '{ "name":"c", "brokers":{ "x": { ' + broker + ' } }, "topics":{} }'


LOGICAL = statistics("logical", "TRY_CONNECT")
UNTRIED = statistics("learned", "INIT")


class Events:
    """Takes whatever a session tells."""

    def __init__(self) -> None:
        self.why: list[str] = []
        self.over = threading.Event()
        self.receipts = 0

    def told(self, receipts: int) -> None:
        self.receipts += receipts

    def disconnected(self, reason: str) -> None:
        self.why.append(reason)
        self.over.set()

    def trouble(self, reason: str) -> None: ...

    def recovered(self) -> None: ...


@pytest.fixture
def config() -> Config:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return Config(Url("kafka", f"127.0.0.1:{port}", "", hosts=(("127.0.0.1", port),)), KafkaSettings())


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics as they are without any broker, as far as can be told."""
    monkeypatch.setattr(Forgotten, "_BROKER", re.compile("(never)(seen)"))


@pytest.mark.parametrize("source", ["learned", "configured"])
def test_a_client_with_a_broker_is_well(source: str) -> None:
    noticed = Forgotten()
    assert not any(noticed.seen(statistics(source, "UP")) for _ in range(5))


def test_a_broker_that_is_tried_again_and_again_is_an_outage_and_no_more() -> None:
    noticed = Forgotten()
    assert not any(noticed.seen(statistics("learned", "INIT", 0.5)) for _ in range(5))


@pytest.mark.parametrize("text", [LOGICAL, UNTRIED], ids=["no broker", "none that is tried"])
def test_two_statistics_in_a_row_without_a_broker_tell(text: str) -> None:
    noticed = Forgotten()
    assert [noticed.seen(text) for _ in range(2)] == [False, True]


def test_a_broker_that_refuses_connections_is_not_forgotten(config: Config) -> None:
    noticed = Forgotten()
    seen: list[bool] = []
    client = Producer(
        {**config.producer(Guarantee.AT_LEAST_ONCE, 30.0), "stats_cb": lambda text: seen.append(noticed.seen(text))}
    )
    client.produce("orders", b"one")
    deadline = time.monotonic() + 20
    while len(seen) < 6 and time.monotonic() < deadline:
        client.poll(0.1)
    assert len(seen) >= 6
    assert not any(seen)


def test_one_is_not_enough_since_the_client_may_be_starting_over() -> None:
    noticed = Forgotten()
    seen = [noticed.seen(text) for text in (LOGICAL, statistics("configured", "CONNECT"), UNTRIED)]
    assert not any(seen)


@pytest.mark.parametrize("guarantee", [Guarantee.AT_LEAST_ONCE, Guarantee.EXACTLY_ONCE])
@pytest.mark.usefixtures("forgotten")
def test_the_sender_gives_back_what_it_holds_and_ends(config: Config, guarantee: Guarantee) -> None:
    events = Events()
    receipts = [Receipt(b"one", "1"), Receipt(b"two", "2")]
    sender = KafkaSender(config.producer(guarantee, 30.0), "orders", guarantee, events)
    try:
        assert all(sender.post(receipt, *receipt.message[:6]) for receipt in receipts)
        assert events.over.wait(15)
        assert events.why == [Forgotten.REASON]
        assert all(isinstance(receipt._outcome, Unknown) for receipt in receipts)
        assert {receipt._outcome.retry for receipt in receipts} == {guarantee is Guarantee.AT_LEAST_ONCE}
        with pytest.raises(ConnectionLost):
            sender.post(receipts[0], *receipts[0].message[:6])
    finally:
        sender.close(1.0)
    assert events.receipts == 2


@pytest.mark.usefixtures("forgotten")
def test_the_receiver_ends(config: Config) -> None:
    events = Events()
    receiver = KafkaReceiver(
        config.consumer("orders--work", 1 << 20),
        {"orders": "orders"},
        {},
        lambda places, timeout: {},
        Traits(),
        lambda settlements: None,
        events,  # type: ignore[arg-type]
        1.0,
    )
    try:
        with pytest.raises(ConnectionLost, match="lost sight"):
            receiver.receive(10, 15.0)
        assert events.why == [Forgotten.REASON]
    finally:
        receiver.close(1.0)


@pytest.mark.parametrize("asked", [Guarantee.AT_LEAST_ONCE, Guarantee.EXACTLY_ONCE])
def test_only_exactly_once_claims_that_an_outage_doubles_nothing(config: Config, asked: Guarantee) -> None:
    points = claims(config, Facts(1, 1), 1000, asked, Guarantee.AT_MOST_ONCE).points
    never = points[FailurePoint.BROKER_PAUSED].duplicate is Likelihood.NEVER
    assert never == (asked is Guarantee.EXACTLY_ONCE)
    assert points[FailurePoint.BROKER_PAUSED].loss is Likelihood.POSSIBLE  # the consumer is at most once
