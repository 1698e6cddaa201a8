"""One request is one attempt, an answer that excludes storage is refused, everything else is unknown."""

from __future__ import annotations

import grpc
import pytest
from brokerkit_pubsub.sender import PubsubSender
from grpc import StatusCode

from brokerkit.driver import Cause, Confirmed, Refused, Unknown
from brokerkit.errors import ConnectionLost
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message

from .scripted_link import NOTHING, Failed, FakeLink


class Told:
    """Outcomes and events as the layer would get them."""

    def __init__(self, ordering: bool = False, guarantee: Guarantee = Guarantee.AT_LEAST_ONCE) -> None:
        self.link = FakeLink()
        self.outcomes: list[object] = []
        self.reasons: list[str] = []
        path = "projects/p/topics/t"
        self.sender = PubsubSender(self.link, "t", path, ordering, guarantee, self.outcomes.extend, self, 30.0)

    def disconnected(self, reason: str) -> None:
        self.reasons.append(reason)

    def ends(self) -> dict[int, object]:
        """The outcome of every sequence number; each has exactly one."""
        found: dict[int, object] = {}
        for outcome in self.outcomes:
            for number in range(outcome.first, outcome.last + 1):
                assert number not in found
                found[number] = outcome
        return found


def messages(count: int, key: str | None = None) -> list[Message]:
    return [Message(b"x", f"{key}-{number}", key) for number in range(count)]


def test_a_batch_is_one_request_and_one_range_with_positions():
    told = Told()
    assert told.sender.send(messages(300)) == 300
    assert len(told.link.asked("Publish")) == 1
    [confirmed] = told.outcomes
    assert (confirmed.first, confirmed.last, confirmed.positions[7].value) == (0, 299, "m7")


def test_requests_keep_to_the_services_limits():
    told = Told()
    told.sender.send(messages(2500))
    told.sender.send([Message(b"x" * 4_000_000, str(n)) for n in range(5)])
    requests = told.link.asked("Publish")
    assert [len(request.messages) for request in requests] == [1000, 1000, 500, 2, 2, 1]
    assert all(request.ByteSize() < 10_000_000 for request in requests)
    assert sorted(told.ends()) == list(range(2505))


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (StatusCode.NOT_FOUND, Cause.TOPIC_MISSING),
        (StatusCode.INVALID_ARGUMENT, Cause.INVALID),
        (StatusCode.PERMISSION_DENIED, Cause.ACCESS),
        (StatusCode.UNAUTHENTICATED, Cause.ACCESS),
    ],
)
def test_an_answer_that_excludes_storage_is_a_refusal(code, cause):
    told = Told()
    told.link.will("Publish", Failed(code, "no"))
    told.sender.send(messages(3))
    assert told.outcomes == [Refused(0, 2, cause, "publish: no")]
    assert told.reasons == []


@pytest.mark.parametrize(
    "code",
    [StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.ABORTED],
)
def test_every_other_failure_is_unknown_and_ends_the_session(code):
    told = Told()
    told.link.will("Publish", Failed(code, "Socket closed"))
    told.sender.send(messages(3))
    [unknown] = told.outcomes
    assert isinstance(unknown, Unknown)
    assert unknown.retry
    assert told.reasons == ["publish: Socket closed"]
    with pytest.raises(ConnectionLost):
        told.sender.send(messages(1))


def test_a_send_that_found_no_connection_is_certainly_not_stored():
    told = Told()
    told.link.will("Publish", Failed(StatusCode.UNAVAILABLE, "failed to connect to all addresses; refused"))
    told.sender.send(messages(1))
    [refused] = told.outcomes
    assert (type(refused), refused.cause, refused.retry) == (Refused, Cause.UNREACHABLE, True)


def test_a_send_that_was_cancelled_is_unknown():
    told = Told()
    told.link.will("Publish", grpc.FutureCancelledError())
    told.sender.send(messages(2))
    [unknown] = told.outcomes
    assert (type(unknown), unknown.cause) == (Unknown, Cause.DISCONNECTED)


def test_an_answer_without_a_message_is_unknown():
    told = Told()
    told.link.will("Publish", NOTHING)
    told.sender.send(messages(2))
    [unknown] = told.outcomes
    assert (type(unknown), unknown.retry, unknown.detail) == (Unknown, True, "publish: the answer had no message")
    assert told.reasons


def test_one_bad_message_is_refused_and_the_others_go():
    told = Told()
    told.sender.send([Message(b"x", "a"), Message(None, "b"), Message(b"x", "c")])
    ends = told.ends()
    assert [type(ends[number]) for number in range(3)] == [Confirmed, Refused, Confirmed]


def test_each_ordering_key_has_requests_of_its_own():
    told = Told(ordering=True)
    told.sender.send([message for pair in zip(messages(3, "a"), messages(3, "b"), strict=True) for message in pair])
    requests = told.link.asked("Publish")
    assert [{message.ordering_key for message in request.messages} for request in requests] == [{"a"}, {"b"}]
    assert sorted(told.ends()) == list(range(6))


def test_a_failed_key_holds_back_what_comes_behind_it_and_no_other_key():
    told = Told(ordering=True)
    large = [Message(b"x" * 6_000_000, f"a-{n}", "a") for n in range(2)]
    told.link.will("Publish", Failed(StatusCode.UNAVAILABLE, "Socket closed"))
    told.sender.send([*large, *messages(1, "b")])
    ends = told.ends()
    assert (type(ends[0]), type(ends[1]), type(ends[2])) == (Unknown, Refused, Confirmed)
    assert ends[1].retry
    assert all(
        message.attributes["brokerkit-id"] != "a-1" for r in told.link.asked("Publish") for message in r.messages
    )


def test_at_most_once_tells_refusals_alone():
    told = Told(guarantee=Guarantee.AT_MOST_ONCE)
    told.sender.send(messages(2))
    told.link.will("Publish", Failed(StatusCode.NOT_FOUND, "no"))
    told.sender.send(messages(1))
    told.link.will("Publish", Failed(StatusCode.UNAVAILABLE, "Socket closed"))
    told.sender.send(messages(1))
    assert told.outcomes == [Refused(2, 2, Cause.TOPIC_MISSING, "publish: no")]
    assert len(told.link.asked("Publish")) == 3
