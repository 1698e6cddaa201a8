"""Leases, handles and settlements, on an SQS that does what a test tells it to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError
from brokerkit_sqs import receiver as module
from brokerkit_sqs.encoding import SqsIncoming
from brokerkit_sqs.receiver import SqsReceiver
from brokerkit_sqs.settings import LEASE_CAP, SqsSettings
from brokerkit_sqs.topology import Queue
from scripted_sqs import Scripted, Told, refusal, until

from brokerkit.driver import End, Nack, Traits
from brokerkit.errors import AccessRefused, Closed, NotFound
from brokerkit.guarantees import Guarantee

Make = Callable[..., SqsReceiver]


@pytest.fixture
def sqs() -> Scripted:
    return Scripted()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The receiver's clock, which a test may set forward."""
    ahead = [0.0]
    monkeypatch.setattr(module, "clock", lambda: time.monotonic() + ahead[0])
    return ahead


@pytest.fixture
def make(sqs: Scripted, told: Told) -> Iterator[Make]:
    made: list[SqsReceiver] = []

    def one(guarantee: Guarantee = Guarantee.AT_LEAST_ONCE, prefetch: int = 100, **settings: Any) -> SqsReceiver:
        chosen = SqsSettings(**{"linger": 0.0, "wait_seconds": 0, "lease_seconds": 30, **settings})
        queues = [Queue("payments", "payments--ledger", "http://localhost/0/payments--ledger")]
        made.append(
            SqsReceiver(sqs, chosen, queues, Traits(), guarantee, told.settled, told, prefetch, 1 << 26)  # type: ignore[arg-type]
        )
        return made[-1]

    yield one
    for receiver in made:
        receiver.close(1.0)


def take(receiver: SqsReceiver, count: int, timeout: float = 5.0) -> list[SqsIncoming]:
    found: list[SqsIncoming] = []
    deadline = time.monotonic() + timeout
    while len(found) < count and time.monotonic() < deadline:
        found += receiver.receive(count - len(found), 0.05)
    assert len(found) == count
    return found


def handles(batches: Sequence[Any]) -> list[str]:
    return [one["ReceiptHandle"] for batch in batches for one in batch]


def failed(*codes: str, fault: bool = True) -> Callable[[Any], Any]:
    left = list(codes)

    def answer(arguments: Any) -> Any:
        if not left:
            return None
        code = left.pop(0)
        return {"Failed": [{"Id": one["Id"], "Code": code, "SenderFault": fault} for one in arguments["Entries"]]}

    return answer


def test_no_more_is_asked_for_than_was_wanted(sqs: Scripted, make: Make):
    for n in range(30):
        sqs.arrive(f"m-{n}", f"r-{n}")
    assert len(take(make(), 3)) == 3
    time.sleep(0.05)
    asked = [arguments["MaxNumberOfMessages"] for name, arguments in sqs.asked if name == "receive_message"]
    assert sum(asked) == 3


def test_acks_are_deleted_in_batches_of_ten_and_end_settled(sqs: Scripted, told: Told, make: Make):
    for n in range(25):
        sqs.arrive(f"m-{n}", f"r-{n}")
    receiver = make(linger=0.02, parallel=1)
    receiver.settle(acks=take(receiver, 25))
    until(lambda: len(told.ends) == 25)
    assert set(told.ends.values()) == {End.SETTLED}
    assert [len(batch) for batch in sqs.batches("delete_message_batch")] == [10, 10, 5]


def test_a_delete_that_got_no_answer_is_asked_again_while_the_lease_lasts(sqs: Scripted, told: Told, make: Make):
    sqs.fail("delete_message_batch", ConnectionClosedError(endpoint_url="x"), refusal("ServiceUnavailable", 503))
    sqs.arrive("m-1", "r-1")
    receiver = make()
    (incoming,) = take(receiver, 1)
    receiver.settle(acks=[incoming])
    until(lambda: told.ends)
    assert told.ends[incoming] is End.SETTLED
    assert len(sqs.batches("delete_message_batch")) == 3


def test_nothing_is_deleted_once_the_lease_is_over(sqs: Scripted, told: Told, make: Make, clock: list[float]):
    sqs.arrive("m-1", "r-1")
    receiver = make()
    (incoming,) = take(receiver, 1)
    clock[0] = 31.0
    receiver.settle(acks=[incoming])
    until(lambda: told.ends)
    assert told.ends[incoming] is End.LOST
    assert sqs.batches("delete_message_batch") == []


@pytest.mark.parametrize(("wait_seconds", "left"), [(10, 29.25), (0, 25.0)], ids=["long poll", "poll"])
def test_a_lease_is_over_here_before_it_is_at_sqs(
    sqs: Scripted, make: Make, clock: list[float], wait_seconds: int, left: float
):
    """Of five seconds that an answer took, a long poll may have waited nearly all; another poll has been on its way."""

    def waits(arguments: Any) -> None:
        if sqs.waiting:
            clock[0] += 5.0

    sqs.answers["receive_message"] = waits
    sqs.arrive("m-1", "r-1")
    receiver = make(wait_seconds=wait_seconds)
    (incoming,) = take(receiver, 1)
    assert left - 1.25 < incoming.deadline - module.clock() <= left


def test_a_lease_that_ran_out_is_told_without_being_asked(sqs: Scripted, told: Told, make: Make, clock: list[float]):
    sqs.arrive("m-1", "r-1")
    receiver = make()
    (incoming,) = take(receiver, 1)
    clock[0] = 31.0
    receiver.receive(0, 0.0)
    assert told.lost == [incoming]


def test_a_lease_that_is_over_is_not_renewed(sqs: Scripted, told: Told, make: Make, clock: list[float]):
    sqs.arrive("m-1", "r-1")
    receiver = make()
    taken = take(receiver, 1)
    clock[0] = 31.0
    receiver.extend(taken, 30.0)
    until(lambda: told.lost == taken)
    assert sqs.batches("change_message_visibility_batch") == []


def test_a_renewal_moves_the_end_of_the_lease(sqs: Scripted, told: Told, make: Make, clock: list[float]):
    sqs.arrive("m-1", "r-1")
    receiver = make()
    (incoming,) = take(receiver, 1)
    clock[0] = 20.0
    receiver.extend([incoming], 30.0)
    until(lambda: incoming.deadline > module.clock() + 25)
    clock[0] = 40.0
    receiver.settle(acks=[incoming])
    until(lambda: told.ends)
    assert told.ends[incoming] is End.SETTLED


def test_renewals_that_wait_behind_a_slow_answer_are_asked_once(sqs: Scripted, make: Make):
    answering = threading.Event()
    sqs.answers["change_message_visibility_batch"] = lambda _: answering.wait(5.0) and {}
    sqs.arrive("m-1", "r-1")
    receiver = make()
    taken = take(receiver, 1)
    receiver.extend(taken, 30.0)
    until(lambda: sqs.batches("change_message_visibility_batch"))
    for seconds in (30.0, 30.0, 60.0, 60.0):
        receiver.extend(taken, seconds)
    answering.set()
    until(lambda: taken[0].deadline > module.clock() + 50)
    asked = [one["VisibilityTimeout"] for batch in sqs.batches("change_message_visibility_batch") for one in batch]
    assert asked == [30, 30, 60]


def test_no_renewal_goes_past_twelve_hours_from_the_receipt(sqs: Scripted, told: Told, make: Make, clock: list[float]):
    sqs.arrive("m-1", "r-1")
    receiver = make(lease_seconds=LEASE_CAP)
    (incoming,) = take(receiver, 1)
    clock[0] = LEASE_CAP - 100.0
    receiver.extend([incoming], 3600.0)
    until(lambda: sqs.batches("change_message_visibility_batch"))
    ((change,),) = sqs.batches("change_message_visibility_batch")
    assert 98 <= change["VisibilityTimeout"] <= 100
    clock[0] = LEASE_CAP + 1.0
    receiver.extend([incoming], 3600.0)
    until(lambda: told.lost == [incoming])


@pytest.mark.parametrize("code", ["ReceiptHandleIsInvalid", "InvalidParameterValue", "MessageNotInflight"])
def test_a_renewal_that_sqs_refuses_is_a_lease_lost_and_its_late_ack_touches_nothing(sqs, told, make, code):
    sqs.answers["change_message_visibility_batch"] = failed(code)
    sqs.arrive("m-1", "r-1")
    receiver = make()
    taken = take(receiver, 1)
    receiver.extend(taken, 30.0)
    until(lambda: told.lost == taken)
    receiver.settle(acks=taken)
    until(lambda: told.ends)
    assert told.ends[taken[0]] is End.LOST
    assert sqs.batches("delete_message_batch") == []


def test_a_delete_refused_for_its_handle_ends_lost(sqs: Scripted, told: Told, make: Make):
    sqs.answers["delete_message_batch"] = failed("ReceiptHandleIsInvalid")
    sqs.arrive("m-1", "r-1")
    receiver = make()
    (incoming,) = take(receiver, 1)
    receiver.settle(acks=[incoming])
    until(lambda: told.ends)
    assert told.ends[incoming] is End.LOST


def test_a_delete_that_failed_on_their_side_is_asked_again(sqs: Scripted, told: Told, make: Make):
    sqs.answers["delete_message_batch"] = failed("InternalError", "RequestThrottled", fault=False)
    sqs.arrive("m-1", "r-1")
    receiver = make()
    (incoming,) = take(receiver, 1)
    receiver.settle(acks=[incoming])
    until(lambda: told.ends)
    assert told.ends[incoming] is End.SETTLED


def test_a_message_in_hand_that_comes_again_is_deleted_by_its_newest_handle(sqs: Scripted, told: Told, make: Make):
    sqs.arrive("m-1", "old")
    receiver = make()
    (incoming,) = take(receiver, 1)
    sqs.arrive("m-1", "new", count=2)
    until(lambda: receiver.receive(1, 0.02) == [] and incoming.handle == "new")
    receiver.settle(acks=[incoming])
    until(lambda: told.ends)
    assert told.ends[incoming] is End.SETTLED
    assert handles(sqs.batches("delete_message_batch")) == ["new"]


def test_a_message_that_comes_again_at_the_end_of_its_lease_is_lost_to_whoever_had_it(sqs, told, make, clock):
    sqs.arrive("m-1", "old")
    receiver = make()
    (incoming,) = take(receiver, 1)
    clock[0] = 29.5
    sqs.arrive("m-1", "new", count=2)
    (again,) = take(receiver, 1)
    assert (again.handle, again.attempt) == ("new", 2)
    until(lambda: told.lost == [incoming])
    receiver.settle(acks=[again])
    until(lambda: told.ends)
    assert handles(sqs.batches("delete_message_batch")) == ["new"]


def test_a_message_that_comes_again_during_its_delete_is_deleted_again(sqs: Scripted, told: Told, make: Make):
    sqs.arrive("m-1", "old")
    receiver = make()
    (incoming,) = take(receiver, 1)

    def received_again(_: Any) -> Any:
        if incoming.handle == "old":
            sqs.arrive("m-1", "new", count=2)
            until(lambda: receiver.receive(1, 0.02) == [] and incoming.handle == "new")

    sqs.answers["delete_message_batch"] = received_again
    receiver.settle(acks=[incoming])
    until(lambda: told.ends)
    assert handles(sqs.batches("delete_message_batch")) == ["old", "new"]


def test_a_settled_message_that_comes_again_is_handed_out_again(sqs: Scripted, told: Told, make: Make):
    sqs.arrive("m-1", "r-1")
    receiver = make()
    receiver.settle(acks=take(receiver, 1))
    until(lambda: told.ends)
    sqs.arrive("m-1", "r-2", count=2)
    (again,) = take(receiver, 1)
    assert again.attempt == 2


def test_a_nack_gives_back_after_the_delay_rounded_up(sqs: Scripted, told: Told, make: Make):
    for n in range(2):
        sqs.arrive(f"m-{n}", f"r-{n}")
    receiver = make(linger=0.02)
    first, second = take(receiver, 2)
    receiver.settle(nacks=[Nack(first, 1.2), Nack(second)])
    until(lambda: len(told.ends) == 2)
    assert set(told.ends.values()) == {End.SETTLED}
    (changes,) = sqs.batches("change_message_visibility_batch")
    assert [one["VisibilityTimeout"] for one in changes] == [2, 0]


def test_a_renewal_does_not_undo_a_nack(sqs: Scripted, told: Told, make: Make):
    sqs.arrive("m-1", "r-1")
    receiver = make(linger=0.05)
    taken = take(receiver, 1)
    receiver.settle(nacks=[Nack(taken[0])])
    receiver.extend(taken, 30.0)
    until(lambda: told.ends)
    assert [one["VisibilityTimeout"] for batch in sqs.batches("change_message_visibility_batch") for one in batch] == [
        0
    ]


def test_at_most_once_deletes_what_comes_again_and_hands_it_to_nobody(sqs: Scripted, told: Told, make: Make):
    sqs.arrive("m-1", "r-1", count=2)
    sqs.arrive("m-2", "r-2", count=1)
    receiver = make(Guarantee.AT_MOST_ONCE)
    (incoming,) = take(receiver, 1)
    assert incoming.message_id == "m-2"
    until(lambda: handles(sqs.batches("delete_message_batch")) == ["r-1"])
    assert told.ends == {}


def test_what_waits_in_the_driver_is_renewed_as_well(sqs: Scripted, make: Make, clock: list[float]):
    for n in range(5):
        sqs.arrive(f"m-{n}", f"r-{n}")
    receiver = make()
    receiver.receive(5, 0.0)
    until(lambda: len(receiver._buffer) == 5)
    clock[0] = 15.0
    receiver.receive(0, 0.0)
    until(lambda: len(handles(sqs.batches("change_message_visibility_batch"))) == 5)


def test_close_gives_back_what_was_not_handed_out(sqs: Scripted, make: Make):
    for n in range(5):
        sqs.arrive(f"m-{n}", f"r-{n}")
    receiver = make()
    receiver.receive(5, 0.0)
    until(lambda: len(receiver._buffer) == 5)
    receiver.close(5.0)
    changes = [one for batch in sqs.batches("change_message_visibility_batch") for one in batch]
    assert [one["VisibilityTimeout"] for one in changes] == [0] * 5
    with pytest.raises(Closed):
        receiver.receive(1, 0.0)


def test_an_ack_without_an_answer_at_close_ends_unknown(sqs: Scripted, told: Told, make: Make):
    def fails(_: Any) -> Any:
        raise ConnectionClosedError(endpoint_url="x")

    sqs.answers["delete_message_batch"] = fails
    sqs.arrive("m-1", "r-1")
    receiver = make()
    (incoming,) = take(receiver, 1)
    receiver.settle(acks=[incoming])
    until(lambda: sqs.batches("delete_message_batch"))
    receiver.close(0.5)
    until(lambda: told.ends)
    assert told.ends[incoming] is End.UNKNOWN


@pytest.mark.parametrize(("code", "error"), [("QueueDoesNotExist", NotFound), ("AccessDenied", AccessRefused)])
def test_what_no_waiting_mends_ends_the_receiver_by_name(sqs, make, code, error):
    def fails(_: Any) -> Any:
        raise refusal(code)

    sqs.answers["receive_message"] = fails
    receiver = make()
    with pytest.raises(error):
        take(receiver, 1)


def test_an_outage_is_waited_out_and_told_once(sqs: Scripted, told: Told, make: Make):
    sqs.fail("receive_message", *(ConnectionClosedError(endpoint_url="x") for _ in range(3)))
    sqs.arrive("m-1", "r-1")
    take(make(), 1)
    assert [news.partition(":")[0] for news in told.news] == ["trouble", "recovered"]


def test_a_queue_that_is_missing_right_after_an_outage_is_waited_for(sqs: Scripted, make: Make):
    """As ElasticMQ's are, which answers before it has read them from its file."""
    missing = refusal("QueueDoesNotExist"), refusal("QueueDoesNotExist")
    sqs.fail("receive_message", ConnectionClosedError(endpoint_url="x"), *missing)
    sqs.arrive("m-1", "r-1")
    take(make(), 1)
    assert len([call for call, _ in sqs.asked if call == "receive_message"]) > 3, "not all of these were met"


def test_a_queue_that_stays_away_after_an_outage_is_missing(sqs: Scripted, make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("brokerkit_sqs.errors._COMING_UP", 0.3)
    outage = [ConnectionClosedError(endpoint_url="x")]

    def fails(_: Any) -> Any:
        raise outage.pop() if outage else refusal("QueueDoesNotExist")

    sqs.answers["receive_message"] = fails
    began = time.monotonic()
    with pytest.raises(NotFound):
        take(make(), 1)
    assert time.monotonic() - began > 0.3


def test_an_idle_consumer_does_not_poll_without_a_pause(sqs: Scripted, make: Make):
    receiver = make()
    for _ in range(5):
        assert receiver.receive(10, 0.05) == []
    assert len([name for name, _ in sqs.asked if name == "receive_message"]) <= 6
