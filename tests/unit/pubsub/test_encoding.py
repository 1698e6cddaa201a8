"""What goes onto the wire keeps to Pub/Sub's limits, comes back whole, and what others wrote never raises."""

from __future__ import annotations

import time
from typing import Any

import pytest
from brokerkit_pubsub.encoding import MAX_BODY, PubsubIncoming, Unencodable, encoded
from brokerkit_pubsub.link import PubsubMessage, PullResponse
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.driver import Cause
from brokerkit.message import Message

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=80)
HEADERS = st.dictionaries(
    TEXT.filter(lambda name: not name.startswith("brokerkit-")), TEXT | st.binary(max_size=1500), max_size=8
)


def received(message: Any, attempt: int = 0) -> PubsubIncoming:
    answer = PullResponse()
    one = answer.received_messages.add()
    one.ack_id = "ack-1"
    one.delivery_attempt = attempt
    one.message.CopyFrom(message)
    one.message.message_id = "m1"
    one.message.publish_time.FromMilliseconds(1234)
    again = PullResponse.FromString(answer.SerializeToString())
    return PubsubIncoming(again.received_messages[0], "topic", "projects/p/subscriptions/topic--s", time.monotonic())


@given(
    body=st.binary(max_size=3000),
    id=TEXT,
    key=st.none() | TEXT,
    headers=HEADERS,
    content_type=st.none() | TEXT,
    ordering=st.booleans(),
)
def test_a_message_comes_back_whole_within_the_limits(body, id, key, headers, content_type, ordering):
    sent = Message(body, id, key, headers, content_type, 1_700_000_000_123)
    made = encoded(sent, ordering)
    assert len(made.attributes) <= 100
    assert all(len(value.encode()) <= 1024 and len(name.encode()) <= 256 for name, value in made.attributes.items())
    got = received(made)
    assert (got.body, got.id, got.id_source, got.key, got.content_type) == (body, id, "producer", key, content_type)
    assert dict(got.headers) == headers
    assert got.published_at == 1_700_000_000_123
    assert made.ordering_key == ((key or "") if ordering else "")


def test_text_headers_are_attributes_that_any_program_reads():
    made = encoded(Message(b"x", "i", headers={"currency": "USD"}), ordering=False)
    assert made.attributes["currency"] == "USD"


def test_long_many_and_reserved_headers_are_packed():
    headers = {
        "long": "v" * 4000,
        "googclient_x": "reserved by the service",
        "bytes": b"\xff",
        **{f"name-{n}": "v" for n in range(200)},
    }
    made = encoded(Message(b"x", "i", headers=headers), ordering=False)
    assert len(made.attributes) <= 100
    assert not any(name.startswith("goog") for name in made.attributes)
    assert dict(received(made).headers) == headers


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (Message(None, "tombstone"), Cause.INVALID),
        (Message(b"x" * (MAX_BODY + 1), "large"), Cause.TOO_LARGE),
        (Message(b"x", "i" * 1025), Cause.INVALID),
        (Message(b"x", "i", key="k" * 1025), Cause.INVALID),
        (Message(b"x", "i", content_type="t" * 1025), Cause.INVALID),
        (Message(b"x", "i", headers={"h": "v" * 200_000}), Cause.INVALID),
    ],
    ids=["tombstone", "body", "id", "key", "content type", "headers"],
)
def test_what_does_not_fit_is_refused_by_name(message, cause):
    for ordering in (False, True):
        with pytest.raises(Unencodable) as refused:
            encoded(message, ordering)
        assert refused.value.cause is cause


def test_a_foreign_message_has_the_services_own_words():
    got = received(PubsubMessage(data=b"\xff", attributes={"a": "b"}, ordering_key="k"), attempt=3)
    assert (got.id, got.id_source, got.key, got.attempt) == ("m1", "native", "k", 3)
    assert (got.published_at, got.content_type, dict(got.headers)) == (1234, None, {"a": "b"})


@given(st.dictionaries(TEXT | st.just("brokerkit-headers-0") | st.just("brokerkit-published-at"), TEXT, max_size=6))
def test_nothing_that_others_wrote_raises(attributes):
    got = received(PubsubMessage(attributes=attributes))
    assert got.body == b""
    assert (got.id, got.key, got.content_type, got.attempt, got.size) is not None
    assert isinstance(got.published_at, int)
    assert dict(got.headers) is not None


def test_pubsubs_own_dead_letter_says_why():
    got = received(PubsubMessage(attributes={"CloudPubSubDeadLetterSourceDeliveryCount": "5"}))
    assert got.all_headers["brokerkit-dead-reason"] == "Pub/Sub moved it after 5 deliveries"


def test_the_token_of_a_delivery_is_its_own():
    made = encoded(Message(b"x", "i"), ordering=False)
    one, other = received(made), received(made)
    assert len({one.token, other.token}) == 2
