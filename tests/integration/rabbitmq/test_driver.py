"""The driver against its contract, on each version: outcomes, settlements, what counts as an attempt."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import brokerkit
from brokerkit.driver import (
    Cause,
    Confirmed,
    End,
    Nack,
    Outcome,
    Receiver,
    Refused,
    Sender,
    Settlement,
    Subscription,
    Unknown,
)
from brokerkit.errors import Closed, ConfigurationError, ConnectionLost, GuaranteeNotOffered, NotFound, NotSupported
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message

pytestmark = pytest.mark.integration

LEAST, MOST = Guarantee.AT_LEAST_ONCE, Guarantee.AT_MOST_ONCE


class Told:
    """Records what a driver tells."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.ends: dict[Any, list[End]] = {}
        self.events: list[tuple[str, Any]] = []
        self._changed = threading.Condition()

    def take(self, outcomes: Sequence[Outcome]) -> None:
        with self._changed:
            self.outcomes += outcomes
            self._changed.notify_all()

    def settled(self, settlements: Sequence[Settlement]) -> None:
        with self._changed:
            for settlement in settlements:
                for token in settlement.tokens:
                    self.ends.setdefault(token, []).append(settlement.end)
            self._changed.notify_all()

    def __getattr__(self, name: str) -> Callable[..., None]:
        def event(*arguments: Any) -> None:
            with self._changed:
                self.events.append((name, arguments))
                self._changed.notify_all()

        return event

    def until(self, done: Callable[[], bool], timeout: float = 10.0) -> None:
        with self._changed:
            assert self._changed.wait_for(done, timeout), (self.outcomes[-5:], self.ends, self.events)

    def numbers(self, kind: type) -> list[int]:
        found = [each for each in self.outcomes if isinstance(each, kind)]
        return sorted(number for each in found for number in range(each.first, each.last + 1))

    def named(self, name: str) -> list[Any]:
        return [arguments for event, arguments in self.events if event == name]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def driver(broker: brokerkit.Broker) -> Any:
    return broker.driver


def fetch(receiver: Receiver, count: int, timeout: float = 10.0) -> list[Any]:
    """`count` deliveries, or what came until `timeout`."""
    found: list[Any] = []
    deadline = time.monotonic() + timeout
    while len(found) < count and time.monotonic() < deadline:
        found += receiver.receive(count - len(found), 0.2)
    return found


def settles_at(driver: Any, topic: str, count: int, subscription: str = "sub") -> None:
    """A quorum queue tells its length a little late."""
    deadline = time.monotonic() + 10.0
    while (depth := driver.depth(topic, subscription)) != count:
        assert time.monotonic() < deadline, f"{depth} messages, not {count}"
        time.sleep(0.02)


def offer(sender: Sender, messages: list[Message]) -> None:
    """Sends all of them, again where the sender is full for now."""
    deadline = time.monotonic() + 10
    while messages and time.monotonic() < deadline:
        messages = messages[sender.send(messages) :]
    assert not messages


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    sessions: list[Any] = []
    yield sessions
    for session in sessions:
        session.close(5.0)


# ---------------------------------------------------------------- sending


def test_each_number_gets_exactly_one_confirm(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    driver.declare(topic, [Subscription("one"), Subscription("two")], {})
    sender = driver.sender(topic, LEAST, told.take, told)
    opened.append(sender)
    for _ in range(20):
        assert sender.send([Message(b"x" * 100) for _ in range(50)]) == 50
    told.until(lambda: len(told.numbers(Confirmed)) >= 1000)
    assert told.numbers(Confirmed) == list(range(1000))
    settles_at(driver, topic, 1000, "one")
    settles_at(driver, topic, 1000, "two")


def test_a_message_nobody_gets_is_refused_as_unroutable(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    driver.declare(topic, [], {})
    sender = driver.sender(topic, LEAST, told.take, told)
    opened.append(sender)
    sender.send([Message(b"a"), Message(b"b")])
    told.until(lambda: len(told.outcomes) == 2)
    assert [(each.first, each.cause) for each in told.outcomes] == [(0, Cause.UNROUTABLE), (1, Cause.UNROUTABLE)]


def test_copies_of_one_id_are_all_refused_when_all_come_back(
    driver: Any, topic: str, told: Told, opened: list[Any]
) -> None:
    driver.declare(topic, [], {})
    sender = driver.sender(topic, LEAST, told.take, told)
    opened.append(sender)
    sender.send([Message(b"a", id="same"), Message(b"b", id="same"), Message(b"c", id="other")])
    told.until(lambda: sum(each.last - each.first + 1 for each in told.outcomes) == 3)
    assert told.numbers(Confirmed) == []
    assert all(isinstance(each, Refused | Unknown) for each in told.outcomes)


def test_what_is_refused_here_leaves_the_numbers_of_the_others_right(
    driver: Any, topic: str, told: Told, opened: list[Any]
) -> None:
    driver.declare(topic, [Subscription("sub")], {})
    sender = driver.sender(topic, LEAST, told.take, told)
    opened.append(sender)
    large = b"x" * (driver.capabilities.max_body_bytes + 1)
    bodies = [b"0", large, b"2", b"3", large, b"5"]
    offer(sender, [Message(body) for body in bodies])
    offer(sender, [Message(b"6"), Message(b"7", headers={"n" * 300: "v"}), Message(b"8", headers={"h": "v" * 200_000})])
    told.until(lambda: sum(each.last - each.first + 1 for each in told.outcomes) == 9)
    assert told.numbers(Confirmed) == [0, 2, 3, 5, 6]
    assert [(each.first, each.cause) for each in told.outcomes if isinstance(each, Refused)] == [
        (1, Cause.TOO_LARGE),
        (4, Cause.TOO_LARGE),
        (7, Cause.INVALID),
        (8, Cause.INVALID),
    ]
    settles_at(driver, topic, 5)


def test_the_largest_body_is_taken_and_comes_back_whole(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    driver.declare(topic, [Subscription("sub")], {})
    sender = driver.sender(topic, LEAST, told.take, told)
    opened.append(sender)
    body = bytes(range(256)) * (driver.capabilities.max_body_bytes // 256)
    sender.send([Message(body), Message(b"")])
    told.until(lambda: told.numbers(Confirmed) == [0, 1], 30.0)
    receiver = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    opened.append(receiver)
    assert [each.body for each in fetch(receiver, 2, 30.0)] == [body, b""]


def test_at_most_once_waits_for_nothing_and_a_clean_close_loses_only_what_is_claimed(
    driver: Any, topic: str, told: Told
) -> None:
    driver.declare(topic, [Subscription("sub")], {})
    sender = driver.sender(topic, MOST, told.take, told)
    assert sender.send([Message(b"x") for _ in range(500)]) == 500
    sender.close(10.0)
    assert told.outcomes == []
    assert told.named("disconnected") == []
    if driver.describe()["version"].startswith("4."):
        settles_at(driver, topic, 500)
    else:  # its channel drops what a quorum queue has not taken yet, without a word
        claim = driver.claims(MOST, Guarantee.AT_LEAST_ONCE).points["clean_shutdown"]
        assert (claim.loss, "3.10" in claim.condition) == ("possible", True)
        deadline = time.monotonic() + 10.0
        while not 0 < driver.depth(topic, "sub") <= 500:
            assert time.monotonic() < deadline, driver.depth(topic, "sub")
            time.sleep(0.02)


def test_a_missing_topic_is_not_found_when_a_sender_opens(driver: Any, topic: str, told: Told) -> None:
    with pytest.raises(NotFound, match=topic):
        driver.sender(topic, LEAST, told.take, told)


def test_a_topic_deleted_under_a_sender_leaves_what_is_out_unknown(
    driver: Any, topic: str, told: Told, opened: list[Any]
) -> None:
    driver.declare(topic, [Subscription("sub")], {})
    sender = driver.sender(topic, LEAST, told.take, told)
    opened.append(sender)
    driver.delete(topic, None)
    sender.send([Message(b"a"), Message(b"b")])
    told.until(lambda: bool(told.named("disconnected")))
    assert told.numbers(Unknown) == [0, 1]
    assert "no exchange" in told.named("disconnected")[0][0]
    with pytest.raises(ConnectionLost):
        sender.send([Message(b"c")])


def test_exactly_once_is_not_offered_and_the_error_says_what_is(driver: Any, topic: str, told: Told) -> None:
    with pytest.raises(GuaranteeNotOffered, match="at_least_once"):
        driver.sender(topic, Guarantee.EXACTLY_ONCE, told.take, told)


def test_a_delay_is_kept_also_for_one_subscription_alone(
    driver: Any, topic: str, told: Told, opened: list[Any]
) -> None:
    driver.declare(topic, [Subscription("one"), Subscription("two")], {})
    everybody = driver.sender(topic, LEAST, told.take, told)
    alone = driver.sender(topic, LEAST, told.take, told, subscription="two")
    opened += [everybody, alone]
    begun = time.monotonic()
    everybody.send([Message(b"all")], 0.4)
    alone.send([Message(b"alone")], 0.4)
    one = driver.receiver([topic], Subscription("one"), LEAST, told.settled, told)
    two = driver.receiver([topic], Subscription("two"), LEAST, told.settled, told)
    opened += [one, two]
    assert [each.body for each in fetch(one, 2, 2.0)] == [b"all"]
    assert sorted(each.body for each in fetch(two, 2)) == [b"all", b"alone"]
    assert time.monotonic() - begun >= 0.4


def test_a_delay_beyond_what_a_ttl_holds_is_refused(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    driver.declare(topic, [Subscription("sub")], {})
    sender = driver.sender(topic, LEAST, told.take, told)
    opened.append(sender)
    sender.send([Message(b"late")], 1e9)
    sender.send([Message(b"now")])
    told.until(lambda: len(told.outcomes) == 2)
    assert {type(each) for each in told.outcomes} == {Refused, Confirmed}


# ---------------------------------------------------------------- receiving


def filled(driver: Any, topic: str, count: int, opened: list[Any], **options: Any) -> None:
    """A subscription `sub` with `count` messages of bodies 0, 1, …"""
    told = Told()
    driver.declare(topic, [Subscription("sub", **options)], {})
    sender = driver.sender(topic, LEAST, told.take, told)
    opened.append(sender)
    sender.send([Message(b"%d" % number) for number in range(count)])
    told.until(lambda: len(told.numbers(Confirmed)) == count)


def test_acks_are_sent_and_then_settled(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    filled(driver, topic, 10, opened)
    receiver = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    opened.append(receiver)
    receiver.settle([each.token for each in fetch(receiver, 10)])
    receiver.flush(5.0)
    assert [told.ends[token] for token in sorted(told.ends)] == [[End.SENT, End.SETTLED]] * 10


def test_settled_comes_by_itself_soon(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    filled(driver, topic, 3, opened)
    receiver = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    opened.append(receiver)
    receiver.settle([each.token for each in fetch(receiver, 3)])
    told.until(lambda: [ends[-1] for ends in told.ends.values()] == [End.SETTLED] * 3, 2.0)


def test_acks_out_of_order_take_nothing_else_with_them(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    filled(driver, topic, 20, opened)
    receiver = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    deliveries = fetch(receiver, 20)
    odd = [each.token for each in deliveries if int(each.body) % 2]
    receiver.settle(odd[5:])
    receiver.flush(5.0)
    receiver.settle(odd[:5])
    receiver.close(5.0)
    again = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    opened.append(again)
    assert sorted(int(each.body) for each in fetch(again, 20, 2.0)) == list(range(0, 20, 2))


def test_a_failed_attempt_counts_and_comes_back_at_once(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    filled(driver, topic, 1, opened)
    receiver = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    opened.append(receiver)
    for attempt in (1, 2, 3):
        (delivery,) = fetch(receiver, 1)
        assert delivery.attempt == attempt
        receiver.settle(nacks=[Nack(delivery.token)])


def test_giving_back_unstarted_burns_no_attempt_on_43(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    filled(driver, topic, 1, opened)
    receiver = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    opened.append(receiver)
    for _ in range(3):
        (delivery,) = fetch(receiver, 1)
        receiver.settle(nacks=[Nack(delivery.token, unstarted=True)])
    (delivery,) = fetch(receiver, 1)
    version = driver.describe()["version"]
    assert delivery.attempt == (1 if version.startswith("4.3") else 4), version


def test_close_gives_back_what_nobody_looked_at(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    filled(driver, topic, 300, opened)
    receiver = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    taken = fetch(receiver, 10)
    receiver.settle([each.token for each in taken])
    receiver.close(10.0)
    assert [ends[-1] for ends in told.ends.values()] == [End.SETTLED] * 10
    assert told.named("disconnected") == []
    with pytest.raises(Closed):
        receiver.receive(1, 0.1)
    again = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    opened.append(again)
    back = fetch(again, 300, 5.0)
    assert len(back) == 290
    if driver.describe()["version"].startswith("4.3"):
        assert {each.attempt for each in back} == {1}


@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_a_consumer_that_dies_each_time_gets_a_message_as_often_as_declared(
    driver: Any, topic: str, told: Told, opened: list[Any], attempts: int
) -> None:
    filled(driver, topic, 1, opened, attempts=attempts, dead_letter=f"{topic}-dead")
    for attempt in range(1, attempts + 1):
        receiver = driver.receiver([topic], Subscription("sub", attempts=attempts), LEAST, told.settled, told)
        (delivery,) = fetch(receiver, 1)
        assert delivery.attempt == attempt
        receiver._session.abort()
    dead = driver.receiver([f"{topic}-dead"], Subscription("dead"), LEAST, told.settled, told)
    opened.append(dead)
    (delivery,) = fetch(dead, 1)
    assert delivery.body == b"0"
    assert "delivery_limit" in delivery.all_headers["brokerkit-dead-reason"]


def test_without_attempts_a_message_comes_back_for_ever(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    filled(driver, topic, 1, opened)
    receiver = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    opened.append(receiver)
    for _ in range(30):
        (delivery,) = fetch(receiver, 1)
        receiver.settle(nacks=[Nack(delivery.token)])
    assert fetch(receiver, 1)[0].attempt == 31


def test_at_most_once_drops_what_is_marked_redelivered(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    filled(driver, topic, 5, opened)
    first = driver.receiver([topic], Subscription("sub"), MOST, told.settled, told)
    assert len(fetch(first, 5)) == 5
    first._session.abort()
    second = driver.receiver([topic], Subscription("sub"), MOST, told.settled, told)
    opened.append(second)
    assert fetch(second, 1, 1.0) == []
    second.flush(5.0)
    settles_at(driver, topic, 0)


def test_many_single_acks_are_all_taken_when_close_returns(
    driver: Any, topic: str, told: Told, opened: list[Any]
) -> None:
    """The channel of a quorum queue keeps single settlements beyond the 32nd to itself, and drops them on close."""
    filled(driver, topic, 400, opened)
    receiver = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    odd = [each.token for each in fetch(receiver, 400) if int(each.body) % 2]
    receiver.settle(odd)
    receiver.close(10.0)
    assert [ends[-1] for ends in told.ends.values()] == [End.SETTLED] * 200
    again = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    opened.append(again)
    assert sorted(int(each.body) for each in fetch(again, 400, 2.0)) == list(range(0, 400, 2))


def test_unstarted_deliveries_given_back_before_close_burn_no_attempt_on_43(
    driver: Any, topic: str, told: Told, opened: list[Any]
) -> None:
    filled(driver, topic, 300, opened)
    receiver = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    held = fetch(receiver, 200)
    receiver.settle([each.token for each in held[:50]], [Nack(each.token, unstarted=True) for each in held[50:]])
    receiver.close(10.0)
    again = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    opened.append(again)
    back = fetch(again, 300, 3.0)
    assert sorted(int(each.body) for each in back) == list(range(50, 300))
    if driver.describe()["version"].startswith("4.3"):
        assert {each.attempt for each in back} == {1}


def test_at_most_once_loses_nothing_at_a_clean_close_on_43(
    driver: Any, topic: str, told: Told, opened: list[Any]
) -> None:
    if not driver.describe()["version"].startswith("4.3"):
        pytest.skip("older versions do not tell what was given back unstarted: it is dropped, and claimed so")
    filled(driver, topic, 100, opened)
    first = driver.receiver([topic], Subscription("sub"), MOST, told.settled, told)
    taken = fetch(first, 10)
    first.settle([each.token for each in taken])
    first.close(10.0)
    second = driver.receiver([topic], Subscription("sub"), MOST, told.settled, told)
    opened.append(second)
    assert sorted(int(each.body) for each in fetch(second, 90)) == list(range(10, 100))


def test_prefetch_bounds_what_is_held(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    filled(driver, topic, 100, opened)
    receiver = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told, prefetch=7)
    opened.append(receiver)
    assert len(fetch(receiver, 8, 1.0)) == 7


def test_prefetch_bytes_stop_the_flow_of_large_bodies(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    driver.declare(topic, [Subscription("sub")], {})
    sender = driver.sender(topic, LEAST, told.take, told)
    opened.append(sender)
    sender.send([Message(b"%02d" % number + b"x" * 500_000) for number in range(60)])
    told.until(lambda: len(told.numbers(Confirmed)) == 60, 30.0)
    receiver = driver.receiver(
        [topic], Subscription("sub"), LEAST, told.settled, told, prefetch=100, prefetch_bytes=2_000_000
    )
    opened.append(receiver)
    held = fetch(receiver, 60, 1.0)
    if driver.describe()["version"].startswith("4.3"):
        assert len(held) == 3
    seen = {each.body[:2] for each in held}
    receiver.settle([each.token for each in held])
    deadline = time.monotonic() + 30
    while len(seen) < 60 and time.monotonic() < deadline:
        for delivery in receiver.receive(3, 0.5):
            seen.add(delivery.body[:2])
            receiver.settle([delivery.token])
    assert len(seen) == 60


def test_a_deleted_queue_ends_the_session_and_names_what_was_held(
    driver: Any, topic: str, told: Told, opened: list[Any]
) -> None:
    filled(driver, topic, 3, opened)
    receiver = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    opened.append(receiver)
    tokens = [each.token for each in fetch(receiver, 3)]
    driver.delete(topic, "sub")
    told.until(lambda: bool(told.named("disconnected")))
    assert told.named("lease_lost")[0][0] == tokens
    with pytest.raises(ConnectionLost):
        receiver.settle(tokens)
    with pytest.raises(NotFound):
        driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)


def test_what_was_acked_when_the_session_broke_is_unknown(
    driver: Any, topic: str, told: Told, opened: list[Any]
) -> None:
    filled(driver, topic, 3, opened)
    receiver = driver.receiver([topic], Subscription("sub"), LEAST, told.settled, told)
    opened.append(receiver)
    tokens = [each.token for each in fetch(receiver, 3)]
    receiver.settle(tokens)
    told.until(lambda: len(told.ends) == 3)
    receiver._session.connection.ioloop.add_callback_threadsafe(receiver._session._drop)
    told.until(lambda: bool(told.named("disconnected")))
    assert {ends[-1] for ends in told.ends.values()} <= {End.UNKNOWN, End.SETTLED}


def test_one_receiver_takes_from_several_topics(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    other = f"{topic}-dead"
    for name in (topic, other):
        driver.declare(name, [Subscription("sub")], {})
        sender = driver.sender(name, LEAST, told.take, told)
        opened.append(sender)
        sender.send([Message(name.encode())])
    receiver = driver.receiver([topic, other], Subscription("sub"), LEAST, told.settled, told)
    opened.append(receiver)
    deliveries = fetch(receiver, 2)
    assert sorted(each.topic for each in deliveries) == sorted([topic, other])
    assert all(each.body.decode() == each.topic for each in deliveries)


# ---------------------------------------------------------------- declaring


def test_declare_is_idempotent_and_names_what_differs(driver: Any, topic: str) -> None:
    subscription = Subscription("sub", attempts=3, dead_letter=f"{topic}-dead")
    driver.declare(topic, [subscription], {})
    driver.declare(topic, [subscription], {})
    with pytest.raises(ConfigurationError, match="x-delivery-limit"):
        driver.declare(topic, [Subscription("sub", attempts=9, dead_letter=f"{topic}-dead")], {})


def test_earliest_is_an_error_that_says_why(driver: Any, topic: str) -> None:
    with pytest.raises(NotSupported, match="declare the subscription before"):
        driver.declare(topic, [Subscription("sub", start="earliest")], {})


def test_native_arguments_reach_the_queue(driver: Any, topic: str, told: Told, opened: list[Any]) -> None:
    driver.declare(topic, [Subscription("sub", native={"x-max-length": 2, "x-overflow": "reject-publish"})], {})
    sender = driver.sender(topic, LEAST, told.take, told)
    opened.append(sender)
    for number in range(200):
        sender.send([Message(b"x")])
        told.until(lambda: sum(each.last - each.first + 1 for each in told.outcomes) == number + 1)  # noqa: B023
    nacked = [each for each in told.outcomes if isinstance(each, Unknown)]
    assert nacked
    assert {(each.cause, each.retry) for each in nacked} == {(Cause.NACKED, True)}


def test_deleting_what_is_missing_is_no_error(driver: Any, topic: str) -> None:
    driver.delete(topic, None)
    driver.delete(topic, "sub")
