"""What a sender tells of each message: confirmed, refused or unknown, and never more than is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError, ReadTimeoutError
from brokerkit_sqs.sender import SqsSender
from brokerkit_sqs.settings import SqsSettings
from brokerkit_sqs.topology import SNS_LIMIT, SQS_LIMIT, Route
from scripted_sqs import Scripted, Told, refusal, until

from brokerkit.driver import Cause, Confirmed, Outcome, Refused, Unknown
from brokerkit.errors import ConnectionLost
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message

URL = "http://localhost/0/payments--ledger"
Make = Callable[..., SqsSender]


@pytest.fixture
def sqs() -> Scripted:
    return Scripted()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def make(sqs: Scripted, told: Told) -> Iterator[Make]:
    made: list[SqsSender] = []

    def one(guarantee: Guarantee = Guarantee.AT_LEAST_ONCE, fan_out: bool = False, **settings: Any) -> SqsSender:
        limit = SNS_LIMIT if fan_out else SQS_LIMIT
        route = Route("payments--ledger", URL, fan_out, limit)
        chosen = SqsSettings(**{"linger": 0.05, **settings})
        made.append(SqsSender(sqs, chosen, "payments", route, guarantee, told.take, told))  # type: ignore[arg-type]
        return made[-1]

    yield one
    for sender in made:
        sender.close(1.0)


def numbers(outcomes: list[Outcome]) -> list[int]:
    return sorted(number for one in outcomes for number in range(one.first, one.last + 1))


def messages(count: int, size: int = 10) -> list[Message]:
    return [Message(b"x" * size, f"id-{n}") for n in range(count)]


def test_what_piles_up_goes_in_batches_of_ten(sqs: Scripted, told: Told, make: Make):
    sender = make(parallel=1)
    for message in messages(30):
        assert sender.send([message]) == 1
    until(lambda: len(numbers(told.outcomes)) == 30)
    assert [len(batch) for batch in sqs.batches("send_message_batch")] == [10, 10, 10]
    assert all(isinstance(one, Confirmed) and one.positions for one in told.outcomes)


def test_a_batch_that_is_not_full_goes_after_the_linger(sqs: Scripted, told: Told, make: Make):
    make(linger=0.01).send(messages(3))
    until(lambda: numbers(told.outcomes) == [0, 1, 2])
    assert [len(batch) for batch in sqs.batches("send_message_batch")] == [3]


def test_the_summed_size_splits_a_batch(sqs: Scripted, told: Told, make: Make):
    make(parallel=1).send(messages(5, 300_000))
    until(lambda: len(numbers(told.outcomes)) == 5)
    assert [len(batch) for batch in sqs.batches("send_message_batch")] == [3, 2]


def test_each_entry_of_a_batch_that_failed_in_part_has_its_own_end(sqs: Scripted, told: Told, make: Make):
    def partly(arguments: Any) -> Any:
        if len(arguments["Entries"]) < 5:
            return None
        ids = [one["Id"] for one in arguments["Entries"]]
        return {
            "Successful": [{"Id": ids[3], "MessageId": "m-3"}, {"Id": ids[0], "MessageId": "m-0"}],
            "Failed": [
                {"Id": ids[1], "SenderFault": True, "Code": "InvalidMessageContents"},
                {"Id": ids[2], "SenderFault": False, "Code": "InternalError"},
            ],
        }

    sqs.answers["send_message_batch"] = partly
    make().send(messages(5))
    until(lambda: numbers(told.outcomes) == [0, 1, 2, 3, 4])
    kinds = {one.first: one for one in told.outcomes}
    assert isinstance(kinds[0], Confirmed)
    assert isinstance(kinds[3], Confirmed)
    assert kinds[3].positions is not None
    assert kinds[3].positions[0].value == "m-3"
    assert isinstance(kinds[1], Refused)
    assert (kinds[1].cause, kinds[1].retry) == (Cause.INVALID, False)
    assert isinstance(kinds[2], Unknown)
    assert kinds[2].retry
    assert isinstance(kinds[4], Unknown), "an entry that the answer leaves out may be stored"


@pytest.mark.parametrize(
    ("error", "kind", "cause", "retry"),
    [
        (EndpointConnectionError(endpoint_url="http://x"), Refused, Cause.UNREACHABLE, True),
        (ReadTimeoutError(endpoint_url="http://x"), Unknown, Cause.TIMED_OUT, True),
        (ConnectionClosedError(endpoint_url="http://x"), Unknown, Cause.DISCONNECTED, True),
        (refusal("InternalError", 500), Unknown, Cause.NACKED, True),
        (refusal("ServiceUnavailable", 503), Unknown, Cause.NACKED, True),
        (refusal("RequestThrottled", 403), Refused, Cause.QUEUE_FULL, True),
        (refusal("AccessDenied", 403), Refused, Cause.ACCESS, False),
        (refusal("AWS.SimpleQueueService.NonExistentQueue"), Refused, Cause.TOPIC_MISSING, False),
        (refusal("InvalidParameterValue"), Refused, Cause.INVALID, False),
        (ZeroDivisionError("a defect"), Unknown, Cause.INVALID, False),
    ],
)
def test_an_error_says_no_more_than_is_known(sqs, told, make, error, kind, cause, retry):
    def fails(_: Any) -> Any:
        raise error

    sqs.answers["send_message_batch"] = fails
    make().send(messages(1))
    until(lambda: told.outcomes)
    (outcome,) = told.outcomes
    assert (type(outcome), outcome.cause, outcome.retry) == (kind, cause, retry)


def test_one_bad_message_does_not_refuse_the_others_of_its_batch(sqs: Scripted, told: Told, make: Make):
    def refuses_all(arguments: Any) -> Any:
        if any(one["MessageBody"] == "bad" for one in arguments["Entries"]):
            raise refusal("InvalidAttributeValue")

    sqs.answers["send_message_batch"] = refuses_all
    make().send([*messages(3), Message(b"bad", "bad")])
    until(lambda: numbers(told.outcomes) == [0, 1, 2, 3])
    assert [one.first for one in told.outcomes if isinstance(one, Refused)] == [3]


def test_what_is_too_large_is_refused_and_the_rest_goes(told: Told, make: Make):
    make().send([Message(b"x" * 2_000_000, "big"), *messages(1)])
    until(lambda: numbers(told.outcomes) == [0, 1])
    (refused,) = [one for one in told.outcomes if isinstance(one, Refused)]
    assert (refused.first, refused.cause, refused.retry) == (0, Cause.TOO_LARGE, False)


def test_a_delay_goes_with_each_message_and_is_bounded(sqs: Scripted, told: Told, make: Make):
    sender = make()
    sender.send(messages(1), delay=1.2)
    sender.send(messages(1), delay=901)
    until(lambda: numbers(told.outcomes) == [0, 1])
    assert [one["DelaySeconds"] for batch in sqs.batches("send_message_batch") for one in batch] == [2]
    assert [one.first for one in told.outcomes if isinstance(one, Refused)] == [1]


def test_through_sns_no_attribute_is_binary_and_no_message_over_its_limit(sqs: Scripted, told: Told, make: Make):
    sqs.answers["publish_batch"] = lambda arguments: {
        "Successful": [{"Id": one["Id"], "MessageId": "m"} for one in arguments["PublishBatchRequestEntries"]]
    }
    make(fan_out=True).send([Message(b"x", "a", headers={"raw": b"\xff"}), Message(b"x" * 300_000, "b")])
    until(lambda: numbers(told.outcomes) == [0, 1])
    (_, arguments), *_ = sqs.asked
    (entry,) = arguments["PublishBatchRequestEntries"]
    assert "brokerkit-headers" in entry["MessageAttributes"]
    assert [one.first for one in told.outcomes if isinstance(one, Refused)] == [1]


def test_at_most_once_tells_only_what_was_certainly_not_written(sqs: Scripted, told: Told, make: Make):
    sqs.fail("send_message_batch", EndpointConnectionError(endpoint_url="x"), ReadTimeoutError(endpoint_url="x"))
    sender = make(Guarantee.AT_MOST_ONCE, linger=0.0, parallel=1)
    for _ in range(3):
        asked = len(sqs.asked)
        sender.send(messages(1))
        until(lambda n=asked: len(sqs.asked) > n)
    sender.close(2.0)
    assert [(type(one), one.first) for one in told.outcomes] == [(Refused, 0)]


def test_close_sees_what_was_taken_to_its_end(sqs: Scripted, told: Told, make: Make):
    sender = make(linger=5.0)
    sender.send(messages(4))
    sender.close(5.0)
    assert numbers(told.outcomes) == [0, 1, 2, 3]
    assert all(isinstance(one, Confirmed) for one in told.outcomes)
    with pytest.raises(ConnectionLost):
        sender.send(messages(1))


def test_an_outage_is_told_once_and_its_end_once(sqs: Scripted, told: Told, make: Make):
    broken = True

    def fails(_: Any) -> Any:
        if broken:
            raise EndpointConnectionError(endpoint_url="http://x")

    sqs.answers["send_message_batch"] = fails
    sender = make(linger=0.0)
    for n in range(3):
        sender.send(messages(1))
        until(lambda n=n: len(told.outcomes) > n)
    broken = False
    sender.send(messages(1))
    until(lambda: "recovered" in told.news)
    assert [news.partition(":")[0] for news in told.news] == ["trouble", "recovered"]


def test_a_queue_that_is_missing_right_after_an_outage_is_sent_to_again(sqs: Scripted, told: Told, make: Make):
    missing = refusal("AWS.SimpleQueueService.NonExistentQueue")
    sqs.fail("send_message_batch", EndpointConnectionError(endpoint_url="http://x"), missing)
    sender = make(linger=0.0, parallel=1)
    for n in range(3):
        sender.send(messages(1))
        until(lambda n=n: len(told.outcomes) > n)
    first, second, third = told.outcomes
    assert isinstance(first, Refused)
    assert isinstance(second, Refused)
    assert (second.cause, second.retry) == (Cause.TOPIC_MISSING, True)
    assert isinstance(third, Confirmed)
