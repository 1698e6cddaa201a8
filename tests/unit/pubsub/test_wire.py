"""HTTP/2 frames of gRPC calls, found in bytes written down by hand and cut anywhere."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from brokerkit_pubsub.link import (
    AcknowledgeRequest,
    ModifyAckDeadlineRequest,
    PublishRequest,
    PublishResponse,
    PubsubMessage,
    PullRequest,
    PullResponse,
)
from brokerkit_pubsub.wire import PubsubCodec
from hpack import Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM, END_HEADERS, PADDED = 0x1, 0x4, 0x8


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def grpc_message(message: Any) -> bytes:
    data = message.SerializeToString()
    return b"\x00" + len(data).to_bytes(4, "big") + data


class Conversation:
    def __init__(self) -> None:
        self._encoder = Encoder()
        self._answers = Encoder()

    def call(self, stream: int, path: str, message: Any) -> bytes:
        block = self._encoder.encode([(":method", "POST"), (":path", path), ("te", "trailers")])
        return frame(0x1, END_HEADERS, stream, block) + frame(0x0, END_STREAM, stream, grpc_message(message))

    def answer(self, stream: int, message: Any) -> bytes:
        head = self._answers.encode([(":status", "200")])
        trailers = self._answers.encode([("grpc-status", "0")])
        return (
            frame(0x1, END_HEADERS, stream, head)
            + frame(0x0, 0, stream, grpc_message(message))
            + frame(0x1, END_HEADERS | END_STREAM, stream, trailers)
        )


def pull_answer() -> Any:
    answer = PullResponse()
    one = answer.received_messages.add()
    one.ack_id = "ack-1"
    one.message.attributes["brokerkit-id"] = "first"
    return answer


SUBSCRIPTION = "projects/p/subscriptions/s"
PUBLISH = PublishRequest(topic="t", messages=[PubsubMessage(data=b"x", attributes={"brokerkit-id": "first"})])


@pytest.mark.parametrize("chunk", [1, 2, 7, 100_000])
def test_calls_and_answers_are_named_and_nothing_is_lost(chunk):
    talk = Conversation()
    client = PREFACE + frame(0x4, 0, 0) + talk.call(1, "/google.pubsub.v1.Publisher/Publish", PUBLISH)
    client += talk.call(3, "/google.pubsub.v1.Subscriber/Pull", PullRequest(subscription=SUBSCRIPTION))
    later = talk.call(
        5, "/google.pubsub.v1.Subscriber/Acknowledge", AcknowledgeRequest(subscription=SUBSCRIPTION, ack_ids=["ack-1"])
    )
    for stream, seconds in ((7, 10), (9, 0)):
        request = ModifyAckDeadlineRequest(subscription=SUBSCRIPTION, ack_ids=["ack-1"], ack_deadline_seconds=seconds)
        later += talk.call(stream, "/google.pubsub.v1.Subscriber/ModifyAckDeadline", request)
    broker = frame(0x4, 0, 0) + talk.answer(1, PublishResponse(message_ids=["m0"])) + talk.answer(3, pull_answer())

    codec = PubsubCodec()
    sent = feed(codec.client, client, chunk)
    came = feed(codec.broker, broker, chunk)
    sent += feed(codec.client, later, chunk)
    assert b"".join(f.raw for f in sent) == client + later
    assert b"".join(f.raw for f in came) == broker
    named = [(f.kind, f.native, f.ids) for f in [*sent, *came] if f.kind != "other"]
    assert named == [
        ("publish", "Publish", ("first",)),
        ("fetch", "Pull", ()),
        ("ack", "Acknowledge", ("first",)),
        ("extend", "ModifyAckDeadline", ("first",)),
        ("extend", "ModifyAckDeadline (nack)", ("first",)),
        ("confirm", "Publish answer", ("first",)),
        ("deliver", "Pull answer", ("first",)),
    ]


def feed(side: Any, data: bytes, chunk: int) -> list[Any]:
    return [found for start in range(0, len(data), chunk) for found in side(data[start : start + chunk])]


def test_a_request_in_pieces_is_named_on_the_piece_that_ends_it():
    talk = Conversation()
    whole = talk.call(1, "/google.pubsub.v1.Publisher/Publish", PUBLISH)
    length = int.from_bytes(whole[:3], "big") + 9
    head, body = whole[:length], whole[length + 9 :]
    codec = PubsubCodec()
    codec.client(PREFACE + head)
    pieces = frame(0x0, 0, 1, body[:10]) + frame(0x0, END_STREAM | PADDED, 1, b"\x02" + body[10:] + b"\0\0")
    assert [(f.kind, f.ids) for f in codec.client(pieces)] == [("other", ()), ("publish", ("first",))]


def test_an_empty_pull_delivers_nothing():
    talk = Conversation()
    codec = PubsubCodec()
    codec.client(PREFACE + talk.call(1, "/google.pubsub.v1.Subscriber/Pull", PullRequest(subscription=SUBSCRIPTION)))
    assert {f.kind for f in codec.broker(talk.answer(1, PullResponse()))} == {"other"}


def test_pings_are_heartbeats():
    codec = PubsubCodec()
    assert codec.client(PREFACE + frame(0x6, 0, 0, b"12345678"))[-1].kind == "heartbeat"


def test_what_is_not_http2_passes_as_it_is():
    codec = PubsubCodec()
    frames = codec.client(b"GET / HTTP/1.1\r\n\r\n")
    assert [(f.raw, f.native) for f in frames] == [(b"GET / HTTP/1.1\r\n\r\n", "unreadable")]
    assert codec.client(b"more")[0].raw == b"more"
