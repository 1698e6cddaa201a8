"""What a fault proxy sees in the bytes of SQS and SNS."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import pytest
from brokerkit_sqs.wire import SqsCodec
from hypothesis import given
from hypothesis import strategies as st


def attributes(id: str) -> dict[str, object]:
    return {"brokerkit-id": {"DataType": "String", "StringValue": id}}


def request(operation: str, content: object) -> bytes:
    body = json.dumps(content).encode()
    head = f"POST / HTTP/1.1\r\nHost: x\r\nX-Amz-Target: AmazonSQS.{operation}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def form(**fields: str) -> bytes:
    body = urlencode(fields).encode()
    return f"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def answer(content: object, status: str = "200 OK") -> bytes:
    body = json.dumps(content).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


SEND = request("SendMessageBatch", {"Entries": [{"Id": "0", "MessageAttributes": attributes("first")}]})
PACKED = {"brokerkit-headers": {"DataType": "String", "StringValue": '{"brokerkit-id":"second"}'}}
CLIENT = [
    SEND,
    request("SendMessage", {"MessageAttributes": PACKED}),
    request("ReceiveMessage", {"MaxNumberOfMessages": 10}),
    request("ReceiveMessage", {"MaxNumberOfMessages": 10}),
    request("DeleteMessageBatch", {"Entries": []}),
    request("ChangeMessageVisibilityBatch", {"Entries": []}),
    request("GetQueueUrl", {"QueueName": "a"}),
    form(
        Action="PublishBatch",
        **{
            "PublishBatchRequestEntries.member.1.MessageAttributes.entry.1.Name": "brokerkit-id",
            "PublishBatchRequestEntries.member.1.MessageAttributes.entry.1.Value.StringValue": "third",
        },
    ),
]
BROKER = [
    answer({"Successful": []}),
    answer({"MessageId": "m"}),
    answer({"Messages": [{"Body": "x", "MessageAttributes": attributes("fourth")}]}),
    answer({}),
    answer({"Successful": []}),
    answer({"Failed": []}),
    answer({"QueueUrl": "x"}),
    answer({"Error": {}}, "503 Unavailable"),
]


def test_each_call_and_its_answer_has_the_kind_of_what_it_does():
    codec = SqsCodec()
    asked = [one.kind for one in codec.client(b"".join(CLIENT))]
    answered = [one.kind for one in codec.broker(b"".join(BROKER))]
    assert asked == ["publish", "publish", "fetch", "fetch", "ack", "heartbeat", "other", "publish"]
    assert answered == ["confirm", "confirm", "deliver", "other", "ack_answer", "heartbeat", "other", "confirm"]


def test_ids_are_seen_where_they_are_and_a_confirm_has_those_of_its_send():
    codec = SqsCodec()
    asked = [one.ids for one in codec.client(b"".join(CLIENT))]
    answered = [one.ids for one in codec.broker(b"".join(BROKER))]
    assert [ids for ids in asked if ids] == [("first",), ("second",), ("third",)]
    assert [ids for ids in answered if ids] == [("first",), ("second",), ("fourth",), ("third",)]


def test_evidence_names_the_operation_and_the_status():
    codec = SqsCodec()
    (sent,) = codec.client(SEND)
    (told,) = codec.broker(answer({}, "503 Unavailable"))
    assert (sent.native, told.native) == ("SendMessageBatch request", "SendMessageBatch answer 503")


@given(st.data())
def test_frames_are_the_same_however_the_bytes_are_cut(data):
    for way, parts in (("client", CLIENT), ("broker", BROKER)):
        codec = SqsCodec()
        if way == "broker":
            list(codec.client(b"".join(CLIENT)))
        whole = b"".join(parts)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=20)))
        pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        frames = [frame for piece in pieces for frame in getattr(codec, way)(piece)]
        assert [frame.raw for frame in frames] == parts


@pytest.mark.parametrize("cut", [1, 30, 90, 10_000])
def test_a_chunked_answer_is_one_frame(cut: int):
    body = json.dumps({"Messages": [{"MessageAttributes": attributes("a")}]}).encode()
    chunks = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in (body[:9], body[9:]))
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    codec = SqsCodec()
    list(codec.client(CLIENT[2]))
    frames = [*codec.broker(raw[:cut]), *codec.broker(raw[cut:])]
    assert [(frame.raw, frame.kind, frame.ids) for frame in frames] == [(raw, "deliver", ("a",))]


def test_tls_is_passed_on_as_it_comes():
    codec = SqsCodec()
    hello, reply = b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x03anything"
    assert [frame.raw for frame in codec.client(hello)] == [hello]
    assert [(frame.raw, frame.kind) for frame in codec.broker(reply)] == [(reply, "other")]
