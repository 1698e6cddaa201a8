"""Webhooks, from a queue in a file to an endpoint over real HTTP."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import brokerkit
from brokerkit import once
from brokerkit.broker import Broker
from brokerkit.errors import ConfigurationError, KeyReused, WebhookRefused
from brokerkit.once import Keys
from brokerkit.once.webhooks import Receiver, Sender, sign

from .conftest import Service


def secret() -> str:
    return f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}"


OLD, NEW = secret(), secret()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with brokerkit.connect(f"sqlite:///{tmp_path / 'queue.db'}") as made:
        made.declare("webhooks", subscriptions=["sender"], attempts=50)
        yield made


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    once.init(url)
    with Keys(url, "webhooks") as made:
        yield made


def deliver(broker: Broker, sender: Sender, attempts: int, id: str = "evt-1") -> list[bool]:
    """How each attempt at one event ended."""
    with broker.producer("webhooks") as producer:
        producer.send(b'{"paid": 50}', id=id).result(10)
    ended: list[bool] = []
    with broker.consumer("webhooks", subscription="sender") as consumer:
        while len(ended) < attempts:
            [delivery] = consumer.receive(1, timeout=10)
            ended.append(sender.deliver(delivery))
        assert consumer.receive(1, timeout=0.5) == []
        assert consumer.flush(10) == 0
    return ended


def test_the_signature_is_the_one_that_others_compute():
    """The example in the tests of the standard's own libraries."""
    signed = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_an_event_is_sent_until_the_endpoint_takes_it_and_the_receiver_has_it_once(
    broker: Broker, service: Service, keys: Keys
):
    service.script = iter(["drop", "500", "302", "204", "204"])
    sender = Sender(f"{service.url}/hooks", [NEW, OLD], first=0.1)
    assert deliver(broker, sender, 4) == [False, False, False, True]
    handled = []
    for receiver in (Receiver(keys, [OLD]), Receiver(keys, [NEW])):
        for _, path, body, headers in service.requests:
            assert (path, body, headers["webhook-id"]) == ("/hooks", b'{"paid": 50}', "evt-1")
            with receiver.receive(headers, body) as event:
                if event.fresh:
                    handled.append(event.key)
    assert handled == ["evt-1"]
    assert deliver(broker, sender, 1, id="an id with. everything") == [True]
    assert receiver.verify(service.requests[-1][3], service.requests[-1][2]) not in ("evt-1", "an id with. everything")


@pytest.mark.parametrize(("status", "give_up"), [("410", timedelta(days=3)), ("500", timedelta(0))])
def test_an_endpoint_that_is_gone_or_too_long_away_gets_no_more(
    broker: Broker, service: Service, status: str, give_up: timedelta
):
    service.script = iter([status])
    assert deliver(broker, Sender(service.url, [NEW], give_up=give_up), 1) == [False]
    with broker.consumer("webhooks-dead", subscription="dead") as dead:
        [letter] = dead.receive(1, timeout=10)
        assert letter.dead_reason == f"the endpoint said {status}"


def test_the_pauses_grow_with_the_age_of_the_event_and_fill_three_days():
    pauses: list[float] = []

    class Old:
        body, id, content_type, attempt = b"", "evt-1", None, None
        published_at = 1

        def nack(self, delay: float) -> None:
            pauses.append(delay)

        def reject(self, reason: str) -> None:
            pauses.append(-1)

    def refuse(_: Any) -> Any:
        raise OSError

    sender = Sender("http://localhost", [NEW], send=refuse)
    event = Old()
    age = 0.0
    while not pauses or pauses[-1] > 0:
        event.published_at = int((time.time() - age) * 1000)
        sender.deliver(event)  # type: ignore[arg-type]
        age += pauses[-1]
    assert 4.5 <= pauses[0] <= 5.5
    assert max(pauses) <= 8 * 3600 * 1.1
    assert 15 <= len(pauses) <= 35
    assert age >= 3 * 86400 - 1


def signed(body: bytes = b"{}", at: float = 0.0, by: str = NEW, **changed: str | None) -> dict[str, str]:
    stamp = int(time.time() + at)
    made: dict[str, str | None] = {
        "Webhook-Id": "evt-1",
        "Webhook-Timestamp": str(stamp),
        "Webhook-Signature": f"v0,other {sign(by, 'evt-1', stamp, body)}",
    }
    made.update({f"Webhook-{name.title()}": value for name, value in changed.items()})
    return {name: value for name, value in made.items() if value is not None}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"body": b'{"dollars": 5000}'}, "no signature fits"),
        ({"by": OLD}, "no signature fits"),
        ({"id": "evt-2"}, "no signature fits"),
        ({"signature": "v1,ü"}, "no signature fits"),
        ({"signature": ""}, "no signature fits"),
        ({"timestamp": "soon"}, "no number of seconds"),
        ({"timestamp": "٣"}, "no number of seconds"),
        ({"id": None}, "webhook-id is missing"),
        ({"signature": None}, "webhook-signature is missing"),
        ({"at": -400.0}, r"sent \d+ s before"),
        ({"at": 400.0}, r"sent \d+ s after"),
    ],
)
def test_what_is_forged_changed_or_replayed_is_refused(keys: Keys, changed: dict[str, Any], words: str):
    with pytest.raises(WebhookRefused, match=words):
        Receiver(keys, [NEW]).receive(signed(**changed), b"{}")
    assert Receiver(keys, [NEW]).receive(signed(), b"{}").fresh


def test_an_event_whose_handler_fails_comes_again_and_another_body_is_not_it(keys: Keys):
    receiver = Receiver(keys, [NEW])
    with pytest.raises(ZeroDivisionError), receiver.receive(signed(), b"{}"):
        raise ZeroDivisionError
    with receiver.receive(signed(), b"{}") as event:
        assert (event.fresh, event.attempts) == (True, 2)
    with pytest.raises(KeyReused):
        receiver.receive(signed(body=b"[]"), b"[]")


@pytest.mark.parametrize("wrong", ["whsec_c2hvcnQ=", "whsec_!", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
def test_a_secret_that_is_none_is_refused_and_not_shown(keys: Keys, wrong: str):
    for make in (lambda: Sender("http://localhost", [wrong]), lambda: Receiver(keys, [wrong])):
        with pytest.raises(ConfigurationError, match="whsec_ and at least 24 random bytes") as raised:
            make()
        assert wrong not in str(raised.value)
    with pytest.raises(ConfigurationError, match="secrets is a list"):
        Sender("http://localhost", NEW)
    with pytest.raises(ConfigurationError, match="secrets is a list"):
        Receiver(keys, [])
