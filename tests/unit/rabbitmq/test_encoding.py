"""What goes onto the wire is what pika reads, and what comes from it never raises."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from brokerkit_rabbitmq.encoding import RabbitIncoming, Unsendable, content, portable
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec
from pika.data import encode_short_string

from brokerkit.message import Message

FRAME_MAX = 131072
DELIVER = b"\x04ctag" + struct.pack(">QB", 1, 0) + b"\x00\x00"


def frames(message: Message, frame_max: int = FRAME_MAX) -> list[Any]:
    """The frames as pika decodes them."""
    data = b"".join(content(message, 1, b"\x02", frame_max))
    found = []
    while data:
        used, decoded = frame.decode_frame(data)
        assert used
        found.append(decoded)
        data = data[used:]
    return found


def received(header: bytes, body: bytes = b"", redelivered: bool = False) -> RabbitIncoming:
    return RabbitIncoming("topic", 1, redelivered, DELIVER, header, body)


def from_pika(redelivered: bool = False, **properties: Any) -> RabbitIncoming:
    """A message whose content header pika encoded."""
    header = frame.Header(1, 0, spec.BasicProperties(**properties)).marshal()[7:-1]
    return received(header, redelivered=redelivered)


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=80)


@given(
    body=st.binary(max_size=3000),
    id=TEXT,
    key=st.none() | TEXT,
    headers=st.dictionaries(TEXT.filter(lambda name: not name.startswith("brokerkit-")), TEXT | st.binary(max_size=50)),
    content_type=st.none() | TEXT,
    published_at=st.integers(0, 2**41),
)
def test_a_message_comes_back_as_it_went(
    body: bytes, id: str, key: str | None, headers: dict[str, Any], content_type: str | None, published_at: int
) -> None:
    kept = {name: value for name, value in headers.items() if not name.startswith("x-") and len(name.encode()) <= 255}
    message = Message(body, id, key, kept, content_type, published_at)
    header, *bodies = frames(message, 1024 * 16)
    assert b"".join(part.fragment for part in bodies) == body
    assert header.body_size == len(body)
    assert header.properties.delivery_mode == 2
    incoming = received(b"".join(content(message, 1, b"\x02", 1024 * 16))[7:][: _length(message)], body)
    assert (incoming.id, incoming.id_source, incoming.key) == (id, "producer", key)
    assert (incoming.content_type, incoming.published_at) == (content_type, published_at)
    assert dict(incoming.headers) == kept
    assert incoming.native.properties.headers == header.properties.headers


def _length(message: Message) -> int:
    return int(struct.unpack_from(">I", b"".join(content(message, 1, b"\x02", 1024 * 16)), 3)[0])


def test_standard_places_are_used_first() -> None:
    header, _ = frames(Message(b"x", "id-1", "key", {"h": "v", "b": b"\xff"}, "text/plain", 1_700_000_000_123))
    properties = header.properties
    assert (properties.message_id, properties.content_type, properties.timestamp) == ("id-1", "text/plain", 1700000000)
    assert properties.headers == {
        "brokerkit-published-at": 1_700_000_000_123,
        "brokerkit-key": "key",
        "h": "v",
        "b": b"\xff",
    }


def test_an_id_or_type_too_long_for_a_property_is_a_header() -> None:
    message = Message(b"x", "i" * 300, content_type="t" * 300)
    (header, _) = frames(message)
    assert header.properties.message_id is None
    incoming = received(b"".join(content(message, 1, b"\x02", FRAME_MAX))[7:][: _length(message)])
    assert (incoming.id, incoming.id_source, incoming.content_type) == ("i" * 300, "producer", "t" * 300)
    assert dict(incoming.headers) == {}


@pytest.mark.parametrize("size", [0, 1, 91, 92, 93, 184, 185])
def test_bodies_are_cut_at_the_frame_size(size: int) -> None:
    _, *bodies = frames(Message(b"x" * size, published_at=0), 100)
    assert [len(part.fragment) for part in bodies] == [92] * (size // 92) + ([size % 92] if size % 92 else [])


@pytest.mark.parametrize(
    "message",
    [Message(None), Message(b"", headers={"n" * 256: "v"}), Message(b"", headers={"n": "v" * FRAME_MAX})],
    ids=["tombstone", "name too long", "larger than a frame"],
)
def test_what_amqp_cannot_carry_is_said(message: Message) -> None:
    with pytest.raises(Unsendable):
        content(message, 1, b"\x02", FRAME_MAX)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "text"),
        (b"\xff", b"\xff"),
        (True, "true"),
        (False, "false"),
        (7, "7"),
        (2.5, "2.5"),
        (None, ""),
        (Decimal("1.50"), "1.50"),
        (datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), "2024-01-02T03:04:05+00:00"),
        ([1, b"\xff", Decimal("1.5")], '[1, "\\\\xff", "1.5"]'),
        ({b"\xfe": {"a": [True, None]}}, '{"\\\\xfe": {"a": [true, null]}}'),
    ],
)
def test_header_values_of_every_type_are_read_by_the_table(value: Any, expected: str | bytes) -> None:
    assert portable(value) == expected


def test_a_message_without_anything_is_received() -> None:
    incoming = from_pika()
    assert (incoming.id_source, incoming.key, incoming.content_type, incoming.published_at) == ("none", None, None, 0)
    assert dict(incoming.headers) == {}
    assert incoming.id == incoming.id != from_pika().id
    assert incoming.attempt == 1


def test_milliseconds_in_a_field_of_seconds_are_recognised() -> None:
    assert from_pika(timestamp=1_700_000_000).published_at == 1_700_000_000_000
    assert from_pika(timestamp=1_700_000_000_123).published_at == 1_700_000_000_123


def test_a_table_that_python_cannot_hold_is_kept_as_bytes() -> None:
    name: list[bytes] = []
    encode_short_string(name, "when")
    table = b"".join(name) + b"T" + struct.pack(">Q", 1_700_000_000_000)
    header = struct.pack(">HHQH", 60, 0, 0, 1 << 13) + struct.pack(">I", len(table)) + table
    incoming = received(header)
    assert dict(incoming.all_headers) == {"brokerkit-unreadable": table}
    assert incoming.native.properties.headers == {"brokerkit-unreadable": table}
    assert (incoming.key, incoming.published_at, incoming.attempt, incoming.id_source) == (None, 0, 1, "none")


@pytest.mark.parametrize(
    ("redelivered", "headers", "attempt"),
    [
        (False, {}, 1),
        (True, {}, None),
        (True, {"x-delivery-count": 2}, 3),
        (True, {"x-delivery-count": 1, "x-acquired-count": 4}, 2),
        (True, {"x-acquired-count": 4}, 1),
        (False, {"brokerkit-attempt": "3"}, 3),
        (True, {"brokerkit-attempt": "3", "x-delivery-count": 1}, 4),
        (False, {"brokerkit-attempt": "many"}, 1),
    ],
)
def test_attempts_add_up_over_copies_and_returns(
    redelivered: bool, headers: dict[str, Any], attempt: int | None
) -> None:
    assert from_pika(redelivered, headers=headers).attempt == attempt


def test_the_brokers_own_headers_stay_native_and_its_dead_letters_have_a_reason() -> None:
    death = {"reason": "delivery_limit", "queue": "q", "count": 1}
    incoming = from_pika(headers={"x-death": [death], "x-delivery-count": 3, "x-first-death-reason": "d", "mine": "v"})
    assert dict(incoming.all_headers) == {
        "mine": "v",
        "brokerkit-dead-reason": "dead-lettered by RabbitMQ: delivery_limit",
    }
    assert dict(from_pika(headers={"x-death": [{**death, "reason": "expired"}]}).headers) == {}


@given(st.binary(max_size=200))
def test_a_header_table_of_any_bytes_does_not_raise(table: bytes) -> None:
    header = struct.pack(">HHQH", 60, 0, 0, 1 << 13) + struct.pack(">I", len(table)) + table
    incoming = received(header)
    assert isinstance(incoming.id, str)
    assert incoming.key is None or isinstance(incoming.key, str)
    assert all(isinstance(value, str | bytes) for value in incoming.headers.values())
    assert isinstance(incoming.published_at, int)
    assert incoming.attempt is not None
