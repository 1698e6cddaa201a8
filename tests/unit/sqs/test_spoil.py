"""Answers that the hazards make of frames: what goes on is what the codec and boto3 would read."""

from __future__ import annotations

import json

from brokerkit_sqs.checks.batch_failed_in_part import FailingEntry
from brokerkit_sqs.checks.spoil import all_done, answer, content_of, refused, reversed_messages, with_content
from brokerkit_sqs.wire import SqsCodec

from brokerkit.driver import Frame


def request(*ids: str) -> Frame:
    body = json.dumps({"QueueUrl": "u", "Entries": [{"Id": id} for id in ids]}).encode()
    head = f"POST / HTTP/1.1\r\nX-Amz-Target: AmazonSQS.DeleteMessageBatch\r\nContent-Length: {len(body)}\r\n\r\n"
    (frame,) = SqsCodec().client(head.encode() + body)
    return frame


def told(content: dict[str, object]) -> Frame:
    return Frame(answer(content), "ack_answer", "answer")


def ids(entries: list[dict[str, str]]) -> list[str]:
    return [entry["Id"] for entry in entries]


def test_a_changed_content_is_still_one_frame():
    (frame,) = SqsCodec().client(with_content(request("0", "1").raw, {"Entries": [{"Id": "1"}]}))
    assert ids(content_of(frame.raw)["Entries"]) == ["1"]


def test_what_was_swallowed_is_told_as_done():
    assert ids(content_of(all_done(request("0", "1")))["Successful"]) == ["0", "1"]


def test_a_refusal_is_an_error_that_boto3_names():
    assert refused("RequestThrottled", "400 Bad Request").startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert content_of(refused("RequestThrottled", "400 Bad Request"))["__type"].endswith("#RequestThrottled")


def test_messages_are_turned_round_where_there_are_several():
    frame = Frame(answer({"Messages": [{"Body": "a"}, {"Body": "b"}]}), "deliver", "answer")
    turned = reversed_messages(frame)
    assert turned is not None
    assert [message["Body"] for message in content_of(turned)["Messages"]] == ["b", "a"]
    assert reversed_messages(Frame(answer({"Messages": [{"Body": "a"}]}), "deliver", "answer")) is None


def test_one_entry_is_kept_back_and_told_as_failed_in_its_own_answer_only():
    failing = FailingEntry()
    changed = failing.asked(request("0", "1", "2"))
    assert changed is not None
    assert ids(content_of(changed.on)["Entries"]) == ["1", "2"]
    assert failing.told(told({"Successful": [{"Id": "0"}]})) is None, "another batch's answer"
    answered = failing.told(told({"Successful": [{"Id": "2"}, {"Id": "1"}]}))
    assert answered is not None
    content = content_of(answered.on)
    assert (ids(content["Successful"]), ids(content["Failed"])) == (["2", "1"], ["0"])
    assert content["Failed"][0]["SenderFault"] is False


def test_a_batch_of_one_is_answered_without_the_endpoint():
    changed = FailingEntry().asked(request("7"))
    assert changed is not None
    assert changed.on == b""
    assert ids(content_of(changed.back)["Failed"]) == ["7"]
