"""Frames of Kafka's protocol, found in bytes written down by hand."""

from __future__ import annotations

import struct

import pytest
from brokerkit_kafka.wire import KafkaCodec


def frame(body: bytes) -> bytes:
    return struct.pack(">i", len(body)) + body


def request(key: int, version: int, number: int, body: bytes = b"") -> bytes:
    return frame(struct.pack(">hhih", key, version, number, 6) + b"client" + body)


def response(number: int, body: bytes = b"") -> bytes:
    return frame(struct.pack(">i", number) + body)


def record(id: bytes) -> bytes:
    """One header of a record: names and values behind zigzag varints."""
    return b"\x01\x00" + b"\x18brokerkit-id" + bytes([len(id) << 1]) + id + b"\x0ctenant\x02a"


CAPTURED_API_VERSIONS = bytes.fromhex("0000001700120003000000010007726472 6b616661 00 02 61 02 62 00".replace(" ", ""))
"""ApiVersions v3 of librdkafka, correlation id 1, as read off a socket (name and version cut short)."""

CLIENT = [
    CAPTURED_API_VERSIONS,
    request(0, 10, 2, b"acks and topics" + record(b"first") + record(b"second")),
    request(1, 16, 3),
    request(8, 9, 4),
    request(26, 4, 5),
    request(68, 1, 6),
    request(28, 3, 7),
]
BROKER = [
    response(1),
    response(2, b"offsets"),
    response(3, record(b"third")),
    response(4),
    response(5),
    response(6),
    response(7),
]


def test_a_captured_request_is_one_frame() -> None:
    (seen,) = KafkaCodec().client(CAPTURED_API_VERSIONS)
    assert (seen.kind, seen.native, seen.raw) == ("other", "ApiVersions v3 request", CAPTURED_API_VERSIONS)


def test_each_request_and_its_answer_has_the_kind_of_what_it_does() -> None:
    codec = KafkaCodec()
    asked = [one.kind for one in codec.client(b"".join(CLIENT))]
    answered = [one.kind for one in codec.broker(b"".join(BROKER))]
    assert asked == ["other", "publish", "fetch", "ack", "commit", "heartbeat", "ack"]
    assert answered == ["other", "confirm", "deliver", "ack_answer", "commit_answer", "heartbeat", "ack_answer"]


@pytest.mark.parametrize(("version", "more"), [(1, b""), (3, b"\x00")])
def test_an_answer_to_the_end_of_a_transaction_names_its_error(version: int, more: bytes) -> None:
    codec = KafkaCodec()
    list(codec.client(request(26, version, 5)))
    (answer,) = codec.broker(response(5, more + struct.pack(">ih", 0, 47)))
    assert answer.native == f"EndTxn v{version} response, error 47"


def test_a_publish_its_confirm_and_a_deliver_name_their_messages() -> None:
    codec = KafkaCodec()
    publish = list(codec.client(b"".join(CLIENT)))[1]
    answers = list(codec.broker(b"".join(BROKER)))
    assert publish.ids == ("first", "second")
    assert answers[1].ids == ("first", "second")
    assert answers[2].ids == ("third",)


@pytest.mark.parametrize("cut", range(1, len(b"".join(CLIENT))))
def test_a_cut_anywhere_changes_no_frame(cut: int) -> None:
    codec = KafkaCodec()
    sent = b"".join(CLIENT)
    assert [*codec.client(sent[:cut]), *codec.client(sent[cut:])] == list(KafkaCodec().client(sent))


def test_bytes_one_by_one_give_the_same_frames_both_ways() -> None:
    codec, whole = KafkaCodec(), KafkaCodec()
    sent, got = b"".join(CLIENT), b"".join(BROKER)
    assert [f for i in range(len(sent)) for f in codec.client(sent[i : i + 1])] == list(whole.client(sent))
    assert [f for i in range(len(got)) for f in codec.broker(got[i : i + 1])] == list(whole.broker(got))


def test_nothing_is_lost_or_added() -> None:
    sent = b"".join(CLIENT) + b"\x00\x00"
    assert b"".join(one.raw for one in KafkaCodec().client(sent)) == b"".join(CLIENT)


def test_answers_out_of_order_find_their_requests() -> None:
    codec = KafkaCodec()
    list(codec.client(b"".join(CLIENT)))
    assert [one.kind for one in codec.broker(BROKER[3] + BROKER[1])] == ["ack_answer", "confirm"]


def test_an_answer_to_nothing_and_short_frames_pass_as_other() -> None:
    codec = KafkaCodec()
    assert [one.kind for one in codec.broker(response(99) + frame(b"ab"))] == ["other", "other"]
    assert [one.kind for one in codec.client(frame(b"abc"))] == ["other"]


def test_unanswered_publishes_do_not_pile_up() -> None:
    codec = KafkaCodec()
    for number in range(10_000):
        list(codec.client(request(0, 10, number)))
    assert len(codec._asked) <= 4096
    assert [one.kind for one in codec.broker(response(9_999))] == ["confirm"]


def test_tls_passes_as_it_comes() -> None:
    codec = KafkaCodec()
    hello = b"\x16\x03\x01\x02\x00\x01\x00"
    assert [(one.raw, one.kind) for one in codec.client(hello)] == [(hello, "other")]
    assert [(one.raw, one.kind) for one in codec.broker(b"\x16\x03\x03")] == [(b"\x16\x03\x03", "other")]


@pytest.mark.parametrize("tail", [b"\x18brokerkit-id", b"\x18brokerkit-id\xff\xff", b"\x18brokerkit-id\x7ex"])
def test_a_broken_id_is_no_id(tail: bytes) -> None:
    (seen,) = KafkaCodec().client(request(0, 10, 1, tail))
    assert seen.ids == ()
