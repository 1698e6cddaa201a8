"""What an sqs:// URL may say, and what is said of a wrong one."""

from __future__ import annotations

import pytest
from brokerkit_sqs.clients import Clients
from brokerkit_sqs.settings import client_options, place_of

import brokerkit
from brokerkit.errors import ConfigurationError
from brokerkit.guarantees import Likelihood
from brokerkit.url import parse

WRONG = {
    "no region": ("sqs://", "region"),
    "not a region": ("sqs://somewhere", "not an AWS region"),
    "host without a region": ("sqs://localhost:9324", "not an AWS region"),
    "two hosts": ("sqs://a:1,b:2/eu-west-1", "one region"),
    "host and endpoint": ("sqs://localhost:9324/eu-west-1?endpoint_url=http://other:1", "one of them"),
    "user without password": ("sqs://key@eu-west-1", "access key id and its secret"),
    "endpoint without a scheme": ("sqs://eu-west-1?endpoint_url=localhost:9324", "endpoint looks like"),
    "endpoint with a password": ("sqs://eu-west-1?endpoint_url=http://u:hunter2@h", "without user or password"),
    "unknown option": ("sqs://eu-west-1?colour=red", "colour.*known.*lease_seconds"),
    "lease above the cap": ("sqs://eu-west-1?lease_seconds=50000", "lease_seconds"),
    "lease of a fraction": ("sqs://eu-west-1?lease_seconds=0.5", "lease_seconds"),
    "poll above the cap": ("sqs://eu-west-1?wait_seconds=21", "wait_seconds"),
    "no threads": ("sqs://eu-west-1?parallel=0", "parallel"),
    "unknown client option": ("sqs://eu-west-1?client.colour=red", "colour.*tcp_keepalive"),
    "botocore's retries": ("sqs://eu-west-1?client.retries=5", "stored twice"),
    "botocore's retries by part": ("sqs://eu-west-1?client.retries.max_attempts=5", "stored twice"),
    "botocore's read timeout": ("sqs://eu-west-1?client.read_timeout=5", "request_timeout"),
    "client flag that is none": ("sqs://eu-west-1?client.tcp_keepalive=maybe", "true or false"),
    "proxies as one": ("sqs://eu-west-1?client.proxies=http://p", "client.proxies.https"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_url_is_told_with_its_cause_before_anything_is_sent(name: str):
    url, words = WRONG[name]
    with pytest.raises(ConfigurationError, match=f"(?i){words}") as caught:
        brokerkit.connect(url)
    assert "hunter2" not in str(caught.value)


def test_a_profile_that_is_not_there_is_told_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with brokerkit.connect("sqs://eu-west-1?profile=missing") as broker:
        with pytest.raises(ConfigurationError, match="missing"):
            broker.describe()


def test_missing_credentials_are_told_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with brokerkit.connect("sqs://localhost:1/eu-west-1") as broker:
        with pytest.raises(brokerkit.errors.AccessRefused, match="credentials"):
            broker.describe()


@pytest.mark.parametrize(
    ("url", "region", "endpoint"),
    [
        ("sqs://eu-west-1", "eu-west-1", None),
        ("sqs://us-gov-west-1", "us-gov-west-1", None),
        ("sqs://eu-west-1?endpoint_url=https://vpce.example:8443", "eu-west-1", "https://vpce.example:8443"),
        ("sqs://key:secret@localhost:9324/eu-west-1", "eu-west-1", "http://localhost:9324"),
        ("sqs://[::1]:9324/eu-west-1", "eu-west-1", "http://[::1]:9324"),
        ("sqs://host/eu-west-1?tls=true", "eu-west-1", "https://host:443"),
    ],
)
def test_the_url_says_where_requests_go(url: str, region: str, endpoint: str | None):
    _, parts, settings = parse(url, {})
    place = place_of(parts, settings)
    assert (place.region, place.endpoint, place.sns_endpoint) == (region, endpoint, endpoint)


def test_client_options_reach_botocore_typed():
    _, parts, settings = parse(
        "sqs://eu-west-1?client.tcp_keepalive=false&client.proxies.https=http://p:1&client.user_agent_extra=x", {}
    )
    assert client_options(settings) == {
        "tcp_keepalive": False,
        "proxies": {"https": "http://p:1"},
        "user_agent_extra": "x",
    }
    config = Clients(place_of(parts, settings), settings).calls.meta.config
    assert (config.tcp_keepalive, config.user_agent_extra) == (False, "x")


def test_botocore_repeats_nothing_and_waits_longer_than_a_poll():
    _, parts, settings = parse("sqs://a:b@eu-west-1?wait_seconds=20&request_timeout=3", {})
    clients = Clients(place_of(parts, settings), settings)
    assert clients.calls.meta.config.retries["total_max_attempts"] == 1
    assert clients.polls.meta.config.read_timeout == 23
    clients.close()


def test_no_secret_is_in_any_repr():
    with brokerkit.connect("sqs://key:the-secret@eu-west-1") as broker:
        shown = f"{broker!r} {broker.driver!r} {vars(broker.driver)!r}"
    assert "the-secret" not in shown


def test_claims_follow_the_settings():
    with brokerkit.connect("sqs://eu-west-1") as broker:
        plain = broker.claims()
    with brokerkit.connect("sqs://eu-west-1?fan_out=sns&lease_seconds=60") as broker:
        fanned = broker.claims()
    with brokerkit.connect("sqs://a:b@localhost:1/eu-west-1?emulator=moto") as broker:
        moto = broker.claims()
    assert (plain.properties.max_body_bytes, fanned.properties.max_body_bytes) == (1_048_576, 262_144)
    assert (plain.properties.lease_seconds, fanned.properties.lease_seconds) == (30.0, 60.0)
    assert (plain.properties.durable, moto.properties.durable) == ("replicated", "none")
    assert any("stale" in note for note in moto.properties.notes)


@pytest.mark.parametrize("consumer", ["at_most_once", "at_least_once"])
def test_a_standard_queue_may_double_at_any_time_and_every_claim_says_so(consumer: str):
    with brokerkit.connect("sqs://eu-west-1") as broker:
        claims = broker.claims("at_least_once", consumer)
    assert all(claim.duplicate is not Likelihood.NEVER and claim.condition for claim in claims.points.values())
    if consumer == "at_least_once":
        assert all(claim.loss is Likelihood.NEVER for claim in claims.points.values())
