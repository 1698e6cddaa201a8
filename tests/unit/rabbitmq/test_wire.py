"""The AMQP codec on bytes written down by hand."""

from __future__ import annotations

import struct

import pytest
from brokerkit_rabbitmq.wire import AmqpCodec

HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
GREETING = b"AMQP\x00\x00\x09\x01"


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def method(channel: int, class_id: int, method_id: int, arguments: bytes = b"") -> bytes:
    return frame(1, channel, struct.pack(">HH", class_id, method_id) + arguments)


def header(channel: int, size: int, message_id: bytes = b"", table: bytes = b"") -> bytes:
    flags, properties = 1 << 15 | 1 << 12, b"\x0atext/plain"
    if table:
        flags |= 1 << 13
        properties += struct.pack(">I", len(table)) + table
    properties += b"\x02"
    if message_id:
        flags |= 1 << 7
        properties += bytes((len(message_id),)) + message_id
    return frame(2, channel, struct.pack(">HHQH", 60, 0, size, flags) + properties)


def publish(channel: int, message_id: bytes, body: bytes = b"body", table: bytes = b"") -> bytes:
    start = method(channel, 60, 40, b"\x00\x00\x05topic\x00\x01") + header(channel, len(body), message_id, table)
    return start + b"".join(frame(3, channel, body[at : at + 3]) for at in range(0, len(body), 3))


def deliver(channel: int, tag: int, message_id: bytes, body: bytes = b"body") -> bytes:
    arguments = b"\x04ctag" + struct.pack(">QB", tag, 0) + b"\x05topic\x00"
    return method(channel, 60, 60, arguments) + header(channel, len(body), message_id) + frame(3, channel, body)


def ack(channel: int, tag: int, multiple: bool = False, method_id: int = 80) -> bytes:
    return method(channel, 60, method_id, struct.pack(">QB", tag, multiple))


OPEN = method(1, 20, 10, b"\x00")
SELECT = method(1, 85, 10, b"\x00")
CLIENT = GREETING + OPEN + SELECT + HEARTBEAT + publish(1, b"a") + publish(1, b"b") + ack(1, 7)


def kinds(frames: list) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(each.kind, each.native, each.ids) for each in frames]


def test_frames_are_named_and_a_publish_is_one_with_its_content() -> None:
    assert kinds(AmqpCodec().client(CLIENT)) == [
        ("other", "protocol-header", ()),
        ("other", "channel.open", ()),
        ("other", "confirm.select", ()),
        ("heartbeat", "heartbeat", ()),
        ("publish", "basic.publish", ("a",)),
        ("publish", "basic.publish", ("b",)),
        ("ack", "basic.ack", ()),
    ]


@pytest.mark.parametrize("cut", range(1, len(CLIENT)))
def test_the_frames_are_the_same_wherever_the_bytes_are_cut(cut: int) -> None:
    codec = AmqpCodec()
    frames = [*codec.client(CLIENT[:cut]), *codec.client(CLIENT[cut:])]
    assert b"".join(each.raw for each in frames) == CLIENT
    assert kinds(frames) == kinds(AmqpCodec().client(CLIENT))


def test_the_frames_are_the_same_byte_by_byte() -> None:
    codec = AmqpCodec()
    frames = [each for at in range(len(CLIENT)) for each in codec.client(CLIENT[at : at + 1])]
    assert kinds(frames) == kinds(AmqpCodec().client(CLIENT))


def test_a_confirm_names_the_messages_it_confirms() -> None:
    codec = AmqpCodec()
    codec.client(GREETING + OPEN + SELECT + b"".join(publish(1, id) for id in (b"a", b"b", b"c", b"d")))
    assert kinds(codec.broker(ack(1, 2))) == [("confirm", "basic.ack", ("b",))]
    assert kinds(codec.broker(ack(1, 3, multiple=True))) == [("confirm", "basic.ack", ("a", "c"))]
    assert kinds(codec.broker(ack(1, 4, method_id=120))) == [("other", "basic.nack", ("d",))]


def test_an_ack_names_the_messages_it_acks() -> None:
    codec = AmqpCodec()
    delivered = codec.broker(b"".join(deliver(1, tag, id) for tag, id in ((1, b"a"), (2, b"b"), (3, b"c"), (4, b"d"))))
    assert kinds(delivered)[0] == ("deliver", "basic.deliver", ("a",))
    assert kinds(codec.client(method(1, 60, 90, struct.pack(">QB", 1, 1)))) == [("other", "basic.reject", ("a",))]
    assert kinds(codec.client(ack(1, 3, multiple=True))) == [("ack", "basic.ack", ("b", "c"))]
    assert kinds(codec.client(ack(1, 0, multiple=True))) == [("ack", "basic.ack", ("d",))]


def test_channels_do_not_mix_when_their_frames_interleave() -> None:
    one = [method(1, 60, 40, b"\x00\x00\x00\x01q\x00"), header(1, 1, b"a"), frame(3, 1, b"1")]
    two = [method(2, 60, 40, b"\x00\x00\x00\x01q\x00"), header(2, 1, b"b"), frame(3, 2, b"2")]
    mixed = b"".join(part for pair in zip(one, two, strict=True) for part in pair)
    frames = AmqpCodec().client(mixed)
    assert [(each.ids, each.raw) for each in frames] == [(("a",), b"".join(one)), (("b",), b"".join(two))]


def test_a_channel_that_is_opened_again_counts_from_one() -> None:
    codec = AmqpCodec()
    codec.client(OPEN + SELECT + publish(1, b"old"))
    codec.client(OPEN + SELECT + publish(1, b"new"))
    assert kinds(codec.broker(ack(1, 1))) == [("confirm", "basic.ack", ("new",))]


def test_without_confirms_nothing_is_remembered_of_a_publish() -> None:
    codec = AmqpCodec()
    codec.client(OPEN + publish(1, b"a"))
    assert codec.channel(1).unconfirmed == {}


def test_an_empty_body_ends_with_its_header() -> None:
    assert kinds(AmqpCodec().client(publish(1, b"a", b""))) == [("publish", "basic.publish", ("a",))]


def test_an_id_too_long_for_the_property_is_found_among_the_headers() -> None:
    long = b"i" * 300
    table = b"\x0cbrokerkit-idS" + struct.pack(">I", len(long)) + long
    assert AmqpCodec().client(publish(1, b"", table=table))[0].ids == (long.decode(),)


def test_an_id_that_is_not_utf8_does_not_raise() -> None:
    assert AmqpCodec().client(publish(1, b"\xff"))[0].ids == ("\\xff",)


def test_a_message_without_id_has_none() -> None:
    assert kinds(AmqpCodec().client(publish(1, b""))) == [("publish", "basic.publish", ())]


def test_bytes_that_are_not_amqp_pass_through() -> None:
    frames = AmqpCodec().client(b"\x16\x03\x01 a TLS hello")
    assert [(each.kind, each.native, each.raw) for each in frames] == [
        ("other", "unreadable", b"\x16\x03\x01 a TLS hello")
    ]


def test_an_unknown_method_is_named_by_its_numbers() -> None:
    assert kinds(AmqpCodec().client(method(0, 10, 99))) == [("other", "10.99", ())]
