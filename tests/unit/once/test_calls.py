"""Calls to a service of the test's own: real HTTP, keys in a file."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from brokerkit import once
from brokerkit.errors import ConfigurationError, NoFinalAnswer, WindowPassed
from brokerkit.once import Keys
from brokerkit.once.calls import Call, Calls
from brokerkit.once.http import Answer

from .conftest import Service

WINDOW = timedelta(days=1)


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    once.init(url)
    with Keys(url, "ledger") as made:
        yield made


def charge(service: Service) -> Call:
    """Another body each time it is made."""
    body = f"50 dollars {secrets.token_hex(8)}".encode()
    return Call("POST", f"{service.url}/charges?currency=usd", body, {"Content-Type": "text/plain"})


def test_the_answer_comes_from_the_service_once_and_from_the_store_after_that(service: Service, keys: Keys):
    calls = Calls(keys, window=WINDOW)
    first = calls.call("evt-1", "charge", lambda: charge(service))
    assert (first.status, first.body) == (201, b"charged 1")
    assert ("Location", "/charges/1") in [tuple(pair) for pair in first.headers]
    assert calls.call("evt-1", "charge", lambda: charge(service)) == first
    assert calls.call("evt-1", "mail", lambda: charge(service)).body == b"charged 2"
    assert calls.call("evt-2", "charge", lambda: charge(service)).body == b"charged 3"
    keys_sent = [headers["Idempotency-Key"] for _, _, _, headers in service.requests]
    assert keys_sent[0] == f'"{once.derived_key("ledger", "evt-1", "charge")}"'
    assert len(set(keys_sent)) == 3
    assert service.requests[0][:2] == ("POST", "/charges?currency=usd")


def test_what_is_sent_again_is_the_same_to_the_byte_also_when_the_message_comes_again(service: Service, keys: Keys):
    service.script = iter(["drop", "503", "409", "429", "drop"])
    calls = Calls(keys, window=WINDOW, attempts=3)
    with pytest.raises(NoFinalAnswer, match="no final answer after 3 attempts, the last: status 409") as raised:
        calls.call("evt-1", "charge", lambda: charge(service))
    assert raised.value.answer.status == 409
    assert calls.call("evt-1", "charge", lambda: charge(service)).body == b"charged 6"
    assert len(service.requests) == 6
    assert all(request == service.requests[0] for request in service.requests)


def test_a_service_that_cannot_be_reached_is_named_and_the_message_comes_again(service: Service, keys: Keys):
    service.server_close()
    service.shutdown()
    with pytest.raises(NoFinalAnswer, match=r"after 2 attempts, the last: ConnectionRefusedError") as raised:
        Calls(keys, window=WINDOW, attempts=2).call("evt-1", "charge", lambda: charge(service))
    assert raised.value.answer is None


def test_a_refusal_is_final_and_a_redirect_is_not_followed(service: Service, keys: Keys):
    service.script = iter(["422", "302"])
    calls = Calls(keys, window=WINDOW)
    for message in ("evt-1", "evt-2"):
        assert calls.call(message, "charge", lambda: charge(service)) == calls.call(
            message, "charge", lambda: charge(service)
        )
    assert len(service.requests) == 2


def test_after_the_window_nothing_is_sent_and_it_says_where_to_look(service: Service, tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    once.init(url)
    with Keys(url, "ledger", lease=5.0, keep=timedelta(seconds=30)) as keys:
        service.script = iter(["503"])
        calls = Calls(keys, window=timedelta(seconds=3), attempts=1)
        with pytest.raises(NoFinalAnswer):
            calls.call("evt-1", "charge", lambda: charge(service))
        threading.Event().wait(3.1)
        with pytest.raises(WindowPassed, match=r"'charge' of message 'evt-1' was begun 0:00:0\d ago.*look there"):
            calls.call("evt-1", "charge", lambda: charge(service))
    assert len(service.requests) == 1


def test_nothing_is_put_down_when_the_request_cannot_be_made(service: Service, keys: Keys):
    def broken() -> Call:
        raise ZeroDivisionError

    calls = Calls(keys, window=WINDOW)
    with pytest.raises(ZeroDivisionError):
        calls.call("evt-1", "charge", broken)
    assert calls.call("evt-1", "charge", lambda: charge(service)).status == 201


def test_a_send_of_one_s_own_is_given_the_call_with_its_key(keys: Keys):
    seen: list[Call] = []

    def send(call: Call) -> Answer:
        seen.append(call)
        return Answer(200, [], b"done")

    calls = Calls(keys, window=WINDOW, send=send, header="X-Key", final=lambda answer: answer.body == b"done")
    assert calls.call("evt-1", "charge", lambda: Call("PUT", "queue:charges", b"\0\xff")).body == b"done"
    key = once.derived_key("ledger", "evt-1", "charge")
    assert seen == [Call("PUT", "queue:charges", b"\0\xff", {"X-Key": f'"{key}"'})]


def test_arguments_that_make_no_sense_are_refused(service: Service, keys: Keys):
    with pytest.raises(ConfigurationError, match="keep them at least as long"):
        Calls(keys, window=timedelta(days=30))
    with pytest.raises(ConfigurationError, match=r"a datetime\.timedelta, not int"):
        Calls(keys, window=3600)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="at least one attempt"):
        Calls(keys, window=WINDOW, attempts=0)
    with pytest.raises(ConfigurationError, match="a call goes to http"):
        Calls(keys, window=WINDOW).call("evt-1", "charge", lambda: Call("POST", "ftp://host/"))
