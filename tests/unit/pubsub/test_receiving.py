"""Leases whose end is known here, and acks that end as the service's answers say."""

from __future__ import annotations

from typing import Any

import pytest
from brokerkit_pubsub import receiver as module
from brokerkit_pubsub.receiver import PubsubReceiver
from grpc import StatusCode

from brokerkit.driver import Nack, Traits
from brokerkit.errors import AccessRefused, ConnectionLost
from brokerkit.guarantees import Guarantee

from .scripted_link import Failed, FakeLink, pulled

PATH = "projects/p/subscriptions/t--s"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Told:
    """A receiver with a lease of ten seconds, and what it told the layer."""

    def __init__(
        self,
        *,
        guarantee: Guarantee = Guarantee.AT_LEAST_ONCE,
        places: int = 1,
        most: int = 1 << 26,
        ordering: bool = False,
    ) -> None:
        self.link = FakeLink()
        self.ends: list[tuple[str, str]] = []
        self.lost: list[str] = []
        self.said: list[str] = []
        paths = [(f"t{number}", PATH if not number else f"{PATH}{number}") for number in range(places)]
        traits = Traits(lease_seconds=10.0, renewable=True)
        self.receiver = PubsubReceiver(self.link, paths, traits, guarantee, self.settled, self, most, ordering)

    def settled(self, settlements: Any) -> None:
        self.ends += [(token.native.ack_id, str(end)) for tokens, end, _ in settlements for token in tokens]

    def lease_lost(self, tokens: Any, reason: str) -> None:
        self.lost += [token.native.ack_id for token in tokens]

    def disconnected(self, reason: str) -> None:
        self.said.append("disconnected")

    def trouble(self, reason: str) -> None:
        self.said.append("trouble")

    def recovered(self) -> None:
        self.said.append("recovered")

    def holding(self, *ids: str, key: str = "") -> list[Any]:
        self.link.will("Pull", pulled(*ids, key=key))
        return list(self.receiver.receive(100, 0.0))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module.time, "monotonic", made.monotonic)
    return made


def test_acks_go_in_one_request_and_are_settled_by_its_answer():
    told = Told()
    told.receiver.settle(acks=told.holding("a", "b", "c"))
    assert [list(request.ack_ids) for request in told.link.asked("Acknowledge")] == [["a", "b", "c"]]
    assert told.ends == [("a", "settled"), ("b", "settled"), ("c", "settled")]


def test_an_ack_after_the_end_of_the_lease_is_lost_and_not_sent(clock):
    told = Told()
    held = told.holding("a", "b")
    clock.now += 10.1
    told.receiver.settle(acks=held)
    assert told.ends == [("a", "lost"), ("b", "lost")]
    assert told.link.asked("Acknowledge") == []


def test_the_lease_is_over_here_before_it_is_at_the_service(clock):
    told = Told()
    told.receiver.receive(10, 0.0)
    [pull] = told.receiver._pulls
    clock.now += 5  # it waits for a message
    pull.future._answer = pulled("a")
    pull.ended_at = clock.now
    held = told.receiver.receive(10, 0.0)
    clock.now += 9.5
    told.receiver.settle(acks=held)
    assert told.ends == [("a", "lost")]


def test_an_ack_that_is_answered_after_the_end_of_the_lease_is_unknown(clock, monkeypatch):
    told = Told()
    held = told.holding("a")
    call = told.link.call

    def slow(*arguments: Any) -> Any:
        clock.now += 2
        return call(*arguments)

    monkeypatch.setattr(told.link, "call", slow)
    clock.now += 8
    told.receiver.settle(acks=held)
    assert told.ends == [("a", "unknown")]
    assert told.link.asked("Acknowledge")


def test_the_lease_of_an_answer_that_lay_about_began_when_its_pull_was_over(clock):
    told = Told()
    told.receiver.receive(10, 0.0)
    clock.now += 30  # this process stands still
    [pull] = told.receiver._pulls
    pull.future._answer = pulled("a")
    pull.ended_at = clock.now
    assert told.receiver.receive(10, 0.0) == []


def test_the_lease_of_what_came_while_this_process_stood_still_is_as_old_as_that(clock):
    told = Told()
    told.receiver.receive(10, 0.0)
    [pull] = told.receiver._pulls
    began = clock.now
    clock.now += 3  # and only then is the answer found
    pull.future._answer = pulled("a")
    told.receiver._arrived.set()
    told.link.done[-1](pull.future)
    assert pull.ended_at == began
    held = told.receiver.receive(10, 0.0)
    clock.now += 7.1
    told.receiver.settle(acks=held)
    assert told.ends == [("a", "lost")]


def test_a_renewal_moves_the_end_of_the_lease(clock):
    told = Told()
    held = told.holding("a")
    clock.now += 9
    told.receiver.extend(held, 10.0)
    clock.now += 9
    told.receiver.settle(acks=held)
    assert told.ends == [("a", "settled")]
    assert [request.ack_deadline_seconds for request in told.link.asked("ModifyAckDeadline")] == [10]


def test_a_renewal_that_comes_too_late_tells_that_the_lease_is_lost(clock):
    told = Told()
    held = told.holding("a")
    clock.now += 10.1
    told.receiver.extend(held, 10.0)
    assert told.lost == ["a"]
    assert told.link.asked("ModifyAckDeadline") == []


def test_a_renewal_without_an_answer_moves_nothing(clock):
    told = Told()
    held = told.holding("a")
    clock.now += 9
    told.link.will("ModifyAckDeadline", Failed(StatusCode.UNAVAILABLE))
    told.receiver.extend(held, 10.0)
    clock.now += 2
    told.receiver.settle(acks=held)
    assert told.ends == [("a", "lost")]


def test_an_ack_without_an_answer_is_sent_again_while_the_lease_lasts(clock):
    told = Told()
    held = told.holding("a")
    told.link.will("Acknowledge", Failed(StatusCode.UNAVAILABLE), Failed(StatusCode.UNAVAILABLE))
    told.receiver.settle(acks=held)
    told.receiver.flush(1.0)
    assert told.ends == [("a", "sent")]
    told.receiver.flush(1.0)
    assert told.ends == [("a", "sent"), ("a", "settled")]
    assert told.said == ["trouble", "recovered"]


def test_an_ack_whose_answer_never_came_ends_unknown_with_its_lease(clock):
    told = Told()
    held = told.holding("a")
    told.link.will("Acknowledge", Failed(StatusCode.UNAVAILABLE))
    told.receiver.settle(acks=held)
    clock.now += 10.1
    told.receiver.flush(1.0)
    assert told.ends == [("a", "sent"), ("a", "unknown")]


def test_at_most_once_an_ack_without_an_answer_ends_unknown_at_once():
    told = Told(guarantee=Guarantee.AT_MOST_ONCE)
    held = told.holding("a")
    told.link.will("Acknowledge", Failed(StatusCode.UNAVAILABLE))
    told.receiver.settle(acks=held)
    assert told.ends == [("a", "unknown")]


def test_exactly_once_delivery_answers_for_each_ack():
    told = Told()
    held = told.holding("fine", "stale", "later")
    reasons = {"stale": "PERMANENT_FAILURE_INVALID_ACK_ID", "later": "TRANSIENT_FAILURE_INVALID_ACK_ID"}
    told.link.will("Acknowledge", Failed(StatusCode.FAILED_PRECONDITION, "some failed", reasons))
    told.receiver.settle(acks=held)
    assert sorted(told.ends) == [("fine", "settled"), ("later", "sent"), ("stale", "lost")]
    told.receiver.flush(1.0)
    assert told.ends[-1] == ("later", "settled")
    assert [list(request.ack_ids) for request in told.link.asked("Acknowledge")][-1] == ["later"]


def test_an_ack_that_was_perhaps_done_before_is_unknown_when_its_id_is_stale():
    told = Told()
    held = told.holding("a")
    told.link.will(
        "Acknowledge",
        Failed(StatusCode.UNAVAILABLE),
        Failed(StatusCode.FAILED_PRECONDITION, "stale", {"a": "PERMANENT_FAILURE_INVALID_ACK_ID"}),
    )
    told.receiver.settle(acks=held)
    told.receiver.flush(1.0)
    assert told.ends == [("a", "sent"), ("a", "unknown")]


def test_exactly_once_delivery_tells_a_lost_lease_at_its_renewal():
    told = Told()
    held = told.holding("a", "b")
    stale = {"b": "PERMANENT_FAILURE_INVALID_ACK_ID"}
    told.link.will("ModifyAckDeadline", Failed(StatusCode.FAILED_PRECONDITION, "stale", stale))
    told.receiver.extend(held, 10.0)
    assert told.lost == ["b"]


def test_a_nack_is_a_deadline_of_its_delay_rounded_up():
    told = Told()
    one, two, three = told.holding("a", "b", "c")
    told.receiver.settle(nacks=[Nack(one), Nack(two, 1.5), Nack(three, unstarted=True)])
    asked = {tuple(r.ack_ids): r.ack_deadline_seconds for r in told.link.asked("ModifyAckDeadline")}
    assert asked == {("a", "c"): 0, ("b",): 2}
    assert {end for _, end in told.ends} == {"settled"}


def test_the_session_ends_when_nothing_was_answered_for_a_lease(clock):
    told = Told()
    told.link.will("Pull", *[Failed(StatusCode.UNAVAILABLE, "refused")] * 3)
    told.receiver.receive(10, 0.0)
    clock.now += 9
    told.receiver.receive(10, 0.0)
    assert told.said == ["trouble"]
    clock.now += 2
    told.receiver.receive(10, 0.0)
    assert told.said == ["trouble", "disconnected"]
    with pytest.raises(ConnectionLost, match="no answer for 11 s"):
        told.receiver.receive(10, 0.0)


def test_a_subscription_that_is_gone_ends_the_session_at_once():
    told = Told()
    told.link.will("Pull", Failed(StatusCode.NOT_FOUND, "gone"))
    told.receiver.receive(10, 0.0)
    assert told.said == ["disconnected"]


def test_an_empty_long_pull_is_no_trouble_and_a_dead_connection_is():
    told = Told()
    told.link.will("Pull", *[Failed(StatusCode.DEADLINE_EXCEEDED)] * 2)
    assert told.receiver.receive(10, 0.0) == []
    assert told.said == []
    told.link.will("GetSubscription", Failed(StatusCode.DEADLINE_EXCEEDED))
    assert told.receiver.receive(10, 0.0) == []
    assert told.said == ["trouble"]


def test_a_refusal_ends_the_consumer_by_name():
    told = Told()
    told.link.will("Pull", Failed(StatusCode.PERMISSION_DENIED, "not yours"))
    with pytest.raises(AccessRefused, match="not yours"):
        told.receiver.receive(10, 0.0)


def test_a_pull_under_way_is_not_asked_again_and_bounds_the_others():
    told = Told(places=2)
    told.receiver.receive(10, 0.0)
    told.receiver.receive(10, 0.0)
    assert [request.max_messages for request in told.link.asked("Pull")] == [5, 5]


def test_pulls_are_bounded_by_bytes_as_well():
    told = Told(most=40)
    told.holding(*"abcd")  # one byte each
    for _ in range(40):
        told.holding("x")
    assert told.link.asked("Pull")[-1].max_messages <= 40


def test_close_ends_what_was_never_answered():
    told = Told()
    held = told.holding("a")
    told.link.will("Acknowledge", Failed(StatusCode.UNAVAILABLE))
    told.receiver.settle(acks=held)
    told.receiver.close(1.0)
    assert told.ends == [("a", "sent"), ("a", "unknown")]
    assert told.said == ["trouble"]


def test_what_is_left_of_the_bound_goes_to_each_subscription_in_turn():
    told = Told(places=2)
    for _ in range(4):
        told.link.will("Pull", pulled("x"))
        told.receiver.receive(1, 0.0)
    assert [request.subscription for request in told.link.asked("Pull")] in (
        [PATH, f"{PATH}1", PATH, f"{PATH}1"],
        [f"{PATH}1", PATH, f"{PATH}1", PATH],
    )


def test_close_gives_back_what_was_pulled_and_handed_to_nobody():
    told = Told()
    told.receiver.receive(10, 0.0)
    [pull] = told.receiver._pulls
    pull.future._answer = pulled("late")
    told.receiver.close(1.0)
    [request] = told.link.asked("ModifyAckDeadline")
    assert (list(request.ack_ids), request.ack_deadline_seconds) == (["late"], 0)
    assert told.link.closed


def test_what_is_given_back_for_good_goes_to_no_pull_of_our_own():
    told = Told()
    [held] = told.holding("a")
    told.receiver.receive(10, 0.0)
    told.receiver.settle(nacks=[Nack(held, 0.0, unstarted=True)])
    told.receiver.receive(10, 0.0)
    told.receiver.close(1.0)
    methods = [method for method, _ in told.link.requests]
    assert methods == ["Pull", "Pull", "cancel Pull", "GetSubscription", "ModifyAckDeadline"]


def test_a_handler_s_nack_ends_no_pull():
    told = Told()
    [held] = told.holding("a")
    told.receiver.receive(10, 0.0)
    told.receiver.settle(nacks=[Nack(held, 0.0)])
    assert not told.link.asked("cancel Pull")


def test_a_pull_is_over_before_the_leases_of_a_process_that_died_with_it():
    told = Told()
    told.holding("a")
    assert told.link.timeouts == [("Pull", 6.0)]


def test_where_pulls_bring_less_than_they_ask_for_several_are_under_way():
    told = Told()
    told.link.will("Pull", pulled(*map(str, range(100))))
    assert len(told.receiver.receive(1000, 0.0)) == 100
    told.receiver.receive(900, 0.0)
    assert [request.max_messages for request in told.link.asked("Pull")] == [1000, 200, 200, 200, 200]


def test_with_ordering_one_pull_at_a_time():
    told = Told(ordering=True)
    told.link.will("Pull", pulled(*map(str, range(100))))
    told.receiver.receive(1000, 0.0)
    told.receiver.receive(900, 0.0)
    assert len(told.link.asked("Pull")) == 2


def test_with_ordering_what_was_acked_is_left_out_when_it_comes_again():
    told = Told(ordering=True)
    told.receiver.settle(acks=told.holding("b", key="k"))
    assert [delivery.native.ack_id for delivery in told.holding("b", key="k")] == ["b"], "nothing was given back"
    told.receiver.settle(nacks=[Nack(token) for token in told.holding("a", key="k")])
    assert [delivery.native.ack_id for delivery in told.holding("a", "b", key="k")] == ["a"]
    assert [list(request.ack_ids) for request in told.link.asked("Acknowledge")] == [["b"], ["b"]]
    assert sorted(told.ends) == [("a", "settled"), ("b", "settled")]


def test_what_the_layer_cannot_take_is_renewed_and_handed_out_when_it_can(clock):
    told = Told()
    told.link.will("Pull", pulled("a"), *[None] * 9)
    told.receiver.receive(10, 0.0)
    told.receiver.receive(9, 0.0)
    [pull] = told.receiver._pulls
    pull.future._answer, pull.ended_at = pulled("b"), clock.now
    for _ in range(10):
        told.receiver.receive(0, 0.0)
        clock.now += 2
    renewals = told.link.asked("ModifyAckDeadline")
    assert {tuple(request.ack_ids) for request in renewals} == {("b",)}
    assert 3 <= len(renewals) <= 6
    assert [delivery.native.ack_id for delivery in told.receiver.receive(9, 0.0)] == ["b"]


def test_what_could_not_be_renewed_is_not_handed_out(clock):
    told = Told()
    told.link.will("Pull", pulled("a"), None)
    told.receiver.receive(10, 0.0)
    told.receiver.receive(9, 0.0)
    [pull] = told.receiver._pulls
    pull.future._answer, pull.ended_at = pulled("b"), clock.now
    told.receiver.receive(0, 0.0)
    clock.now += 10.1
    assert told.receiver.receive(9, 0.0) == []
    assert told.lost == []
