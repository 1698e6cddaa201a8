"""Messages as SQS carries them come back whole, and what does not fit is refused by name."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from brokerkit_sqs.encoding import MOST_ATTRIBUTES, SqsIncoming, Unfit, encoded
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.driver import Cause
from brokerkit.message import Message

LIMIT = 1_048_576
QUEUE: Any = SimpleNamespace(name="payments--ledger", topic="payments", url="")


def arrived(body: str, attributes: dict[str, Any] | None = None, **more: Any) -> SqsIncoming:
    raw = {"MessageId": "m-1", "ReceiptHandle": "r-1", "Body": body, **more}
    if attributes is not None:
        raw["MessageAttributes"] = attributes
    return SqsIncoming(raw, "payments", QUEUE, 1.0, 1.0)


def there_and_back(message: Message, *, binary: bool = True) -> SqsIncoming:
    text, attributes, _ = encoded(message, LIMIT, binary=binary)
    assert len(attributes) <= MOST_ATTRIBUTES
    assert text
    return arrived(text, attributes)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(
    st.binary() | TEXT.map(str.encode),
    TEXT,
    st.none() | TEXT,
    st.dictionaries(
        TEXT.filter(lambda name: not name.startswith("brokerkit-")),
        st.text(st.characters(exclude_categories=["Cs"])) | st.binary(),
    ),
    st.none() | TEXT,
    st.booleans(),
)
def test_whatever_was_sent_arrives(body, id, key, headers, content_type, binary):
    found = there_and_back(Message(body, id, key, headers, content_type, 1_700_000_000_123), binary=binary)
    assert (found.body, found.id, found.key, found.content_type) == (body, id, key, content_type)
    assert dict(found.headers) == headers
    assert (found.id_source, found.published_at) == ("producer", 1_700_000_000_123)


def test_text_travels_as_it_is_and_says_nothing_of_an_encoding():
    text, attributes, size = encoded(Message("größe ✓ 🐇\r\n".encode(), "id-1"), LIMIT)
    assert text == "größe ✓ 🐇\r\n"
    assert set(attributes) == {"brokerkit-id", "brokerkit-published-at"}
    assert size > len(text.encode())


@pytest.mark.parametrize("body", [b"\x00", b"\xff\xfe", "\ufffe".encode(), b"\x1b[0m"])
def test_what_xml_does_not_know_travels_as_base64(body: bytes):
    text, attributes, _ = encoded(Message(body, "id-1"), LIMIT)
    assert attributes["brokerkit-encoding"]["StringValue"] == "base64"
    assert text.isascii()


def test_few_headers_are_attributes_that_other_programs_can_read():
    _, attributes, _ = encoded(Message(b"x", "id-1", headers={"tenant": "a", "raw": b"\xff"}), LIMIT)
    assert attributes["tenant"] == {"DataType": "String", "StringValue": "a"}
    assert attributes["raw"] == {"DataType": "Binary", "BinaryValue": b"\xff"}


@pytest.mark.parametrize(
    "headers",
    [
        {f"name-{n}": "v" for n in range(40)},
        {"with space": "v"},
        {"AWS.trace": "v"},
        {"empty": ""},
        {"control": "\x00"},
        {"no-bytes": b""},
        {".dot": "v"},
        {"two..dots": "v"},
    ],
)
def test_headers_that_sqs_would_refuse_are_packed_into_one_attribute(headers):
    _, attributes, _ = encoded(Message(b"x", "id-1", headers=headers), LIMIT)
    packed = json.loads(attributes["brokerkit-headers"]["StringValue"])
    assert set(packed) == set(headers)
    assert not set(headers) & set(attributes)


def test_the_limit_counts_the_attributes_and_says_what_was_too_much():
    headers = {"h": "v" * 1000}
    with pytest.raises(Unfit, match=r"bytes with its attributes.*1048576 are allowed") as caught:
        encoded(Message(b"x" * (LIMIT - 500), "id-1", headers=headers), LIMIT)
    assert caught.value.cause is Cause.TOO_LARGE
    encoded(Message(b"x" * (LIMIT - 500), "id-1"), LIMIT)


def test_bytes_that_are_too_many_as_base64_are_told_as_such():
    with pytest.raises(Unfit, match="as base64"):
        encoded(Message(b"\xff" * 800_000, "id-1"), LIMIT)


def test_a_tombstone_is_refused():
    with pytest.raises(Unfit, match="tombstone"):
        encoded(Message(None, "id-1"), LIMIT)


def test_a_foreign_message_has_sqs_s_own_id_and_its_attributes_as_headers():
    found = arrived(
        "plain",
        {
            "number": {"DataType": "Number", "StringValue": "42"},
            "bytes": {"DataType": "Binary.png", "BinaryValue": b"\x89"},
        },
        Attributes={"SentTimestamp": "1700000000000", "ApproximateReceiveCount": "3"},
    )
    assert (found.id, found.id_source, found.body) == ("m-1", "native", b"plain")
    assert dict(found.headers) == {"number": "42", "bytes": b"\x89"}
    assert (found.published_at, found.attempt) == (1_700_000_000_000, 3)
    assert str(found.position) == "payments/payments--ledger@m-1"


@pytest.mark.parametrize(
    "attributes",
    [
        {"brokerkit-encoding": {"DataType": "String", "StringValue": "base64"}},
        {"brokerkit-encoding": {"DataType": "String", "StringValue": "rot13"}},
        {"brokerkit-headers": {"DataType": "String", "StringValue": "{nonsense"}},
        {"brokerkit-headers": {"DataType": "String", "StringValue": "[1, 2]"}},
        {"brokerkit-headers": {"DataType": "String", "StringValue": '{"a": {"base64": "%"}}'}},
        {"brokerkit-headers": {"DataType": "Binary", "BinaryValue": b"\xff"}},
        {"brokerkit-published-at": {"DataType": "String", "StringValue": "yesterday"}},
        {"brokerkit-id": {"DataType": "Binary", "BinaryValue": b"\xff"}},
        {"brokerkit-key": {"DataType": "String"}},
    ],
)
def test_nothing_that_a_foreign_program_writes_under_our_names_raises(attributes):
    found = arrived("not base64!", attributes)
    assert found.body == b"not base64!"
    assert found.id
    assert found.headers is not None
    assert found.published_at >= 0
    assert found.attempt is None
