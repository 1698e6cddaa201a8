"""What a URL says, as options of each kind of client; no broker runs here."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from brokerkit_kafka.settings import Config, KafkaSettings
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from brokerkit.errors import ConfigurationError
from brokerkit.guarantees import Guarantee
from brokerkit.plugins import Url

URL = Url("kafka", "127.0.0.1:1", "", hosts=(("127.0.0.1", 1),))
MIXED = {
    "session.timeout.ms": "8000",
    "fetch.min.bytes": "10",
    "compression.type": "lz4",
    "enable.gapless.guarantee": "true",
}
"""Of consumers alone, and of producers alone."""


def config(client: dict[str, str] | None = None, **options: Any) -> Config:
    return Config(URL, KafkaSettings(client=client or {}, **options))


def test_an_option_for_one_kind_of_client_disturbs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    made = config(MIXED)
    with caplog.at_level(logging.DEBUG):
        producer = Producer(made.producer(Guarantee.AT_LEAST_ONCE, 5.0))
        admin = AdminClient(made.admin())
        consumer = Consumer(made.consumer("orders--work", 1 << 20))
        for client in (producer, admin, consumer):
            client.poll(0.05)  # the log comes with the callbacks
        consumer.close()
    assert not [record.message for record in caplog.records if "property" in record.getMessage()]


def test_options_of_the_url_win_but_not_over_a_promise() -> None:
    made = config({"linger.ms": "0", "acks": "1", "message.timeout.ms": "9000"})
    confirmed = made.producer(Guarantee.AT_LEAST_ONCE, 5.0)
    assert (confirmed["linger.ms"], confirmed["acks"], confirmed["message.timeout.ms"]) == ("0", "1", "9000")
    blind = made.producer(Guarantee.AT_MOST_ONCE, 5.0)
    assert (blind["acks"], blind["message.timeout.ms"], blind["linger.ms"]) == ("0", 1000, "0")
    assert made.consumer("g", 0)["enable.auto.commit"] is False


@pytest.mark.parametrize(
    ("options", "protocol"),
    [({}, None), ({"tls": True}, "SSL"), ({"tls_ca": "authority.pem"}, "SSL")],
)
def test_any_path_for_tls_turns_it_on(options: dict[str, object], protocol: str | None) -> None:
    assert config(**options).admin().get("security.protocol") == protocol


def test_a_user_means_sasl_and_the_password_shows_nowhere() -> None:
    url = Url("kafka", "h:1", "", username="alice", password="not-shown", hosts=(("h", 1),))
    made = Config(url, KafkaSettings(tls=True))
    assert made.admin()["security.protocol"] == "SASL_SSL"
    assert made.admin()["sasl.mechanism"] == "PLAIN"
    assert "not-shown" not in f"{made!r} {url!r}"


@pytest.mark.parametrize("option", ["group.id", "auto.offset.reset", "transactional.id"])
def test_what_brokerkit_sets_itself_is_told_with_what_to_do(option: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"client\.{option} cannot be set: .+"):
        config({option: "x"})
