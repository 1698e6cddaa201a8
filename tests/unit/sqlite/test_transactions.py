"""What a transactor of the sqlite driver promises: acks and sends together, or not at all."""

from __future__ import annotations

import time

import pytest

from brokerkit.driver import Subscription
from brokerkit.errors import Closed, LeaseLost, NotFound, SendRefused
from brokerkit.message import Message


@pytest.fixture
def transactor_of(rig):
    made = []

    def make(instance=None, **settings):
        transactor = rig.another(**settings).transactor(["orders"], Subscription("main"), instance=instance)
        made.append(transactor)
        return transactor

    rig.declare("orders")
    rig.declare("bills")
    rig.outbox().send(b"1", b"2")
    yield make
    for transactor in made:
        transactor.close(1.0)


def depths(rig):
    return rig.driver.depth("orders", "main"), rig.driver.depth("bills", "main")


def test_a_commit_shows_sends_and_acks_together(rig, transactor_of):
    transactor = transactor_of()
    transactor.begin()
    received = transactor.receive(10, 1.0)
    transactor.send("bills", Message(b"bill"))
    transactor.settle([one.token for one in received])
    assert depths(rig) == (2, 0)
    transactor.commit()
    assert depths(rig) == (0, 1)


def test_a_message_without_a_time_is_published_when_it_is_sent(rig, transactor_of):
    before = time.time() * 1000
    transactor = transactor_of()
    transactor.begin()
    transactor.send("bills", Message(b"now", published_at=0))
    transactor.send("bills", Message(b"then", published_at=17))
    transactor.commit()
    now, then = rig.inbox("bills").receive(2, 1.0)
    assert before - 1 <= now.published_at <= time.time() * 1000
    assert then.published_at == 17


def test_an_abort_undoes_all_and_hands_out_again_from_the_first(rig, transactor_of):
    transactor = transactor_of()
    for _ in range(3):
        transactor.begin()
        received = transactor.receive(10, 1.0)
        assert [(one.body, one.attempt) for one in received] == [(b"1", 1), (b"2", 1)]
        transactor.send("bills", Message(b"bill"))
        transactor.settle([one.token for one in received])
        transactor.abort()
    assert depths(rig) == (2, 0)


def test_what_is_not_settled_in_a_commit_comes_back(rig, transactor_of):
    transactor = transactor_of()
    transactor.begin()
    first, _ = transactor.receive(10, 1.0)
    transactor.settle([first.token])
    transactor.commit()
    transactor.begin()
    assert [one.body for one in transactor.receive(10, 1.0)] == [b"2"]


def test_a_reject_within_a_transaction_is_part_of_it(rig, transactor_of):
    transactor = transactor_of()
    transactor.begin()
    first, second = transactor.receive(10, 1.0)
    transactor.settle([second.token], [(first, "poison")])
    transactor.commit()
    [dead] = rig.inbox("orders-dead", name="dead").receive()
    assert (dead.body, dead.all_headers["brokerkit-dead-reason"]) == (b"1", "poison")
    assert depths(rig)[0] == 0


def test_a_lost_lease_fences_the_whole_commit(rig, transactor_of):
    slow, other = transactor_of(lease_seconds=0.1), rig.inbox()
    slow.begin()
    received = slow.receive(10, 1.0)
    slow.send("bills", Message(b"bill"))
    slow.settle([one.token for one in received])
    assert other.bodies(1) == [b"1"]
    with pytest.raises(LeaseLost):
        slow.commit()
    slow.abort()
    assert depths(rig) == (2, 0)


def test_a_younger_owner_of_the_instance_takes_over_at_once(rig, transactor_of):
    old = transactor_of("one")
    old.begin()
    received = old.receive(10, 1.0)
    old.settle([one.token for one in received])
    old.send("bills", Message(b"bill"))
    young = transactor_of("one")
    young.begin()
    assert len(young.receive(10, 1.0)) == 2
    with pytest.raises(LeaseLost, match="'one'"):
        old.commit()
    assert depths(rig) == (2, 0)


def test_a_fenced_owner_cannot_commit_sends_alone(rig, transactor_of):
    old = transactor_of("one")
    transactor_of("one")
    old.begin()
    old.send("bills", Message(b"bill"))
    with pytest.raises(LeaseLost):
        old.commit()
    assert depths(rig)[1] == 0


def test_sending_where_nothing_would_be_kept_is_an_error(rig, transactor_of):
    transactor = transactor_of()
    transactor.begin()
    with pytest.raises(NotFound, match="'nowhere'"):
        transactor.send("nowhere", Message(b"x"))
    rig.driver.delete("bills", "main")
    with pytest.raises(NotFound, match="no subscription"):
        transactor.send("bills", Message(b"x"))


def test_a_body_too_large_is_an_error_at_the_send(transactor_of):
    transactor = transactor_of(max_body_bytes=3)
    transactor.begin()
    with pytest.raises(SendRefused, match="max_body_bytes") as refused:
        transactor.send("bills", Message(b"four"))
    assert refused.value.cause == "too_large"


def test_closing_gives_back_and_later_use_is_an_error(rig, transactor_of):
    transactor = transactor_of()
    transactor.begin()
    transactor.receive(10, 1.0)
    transactor.close(1.0)
    assert len(rig.inbox().receive(timeout=1.0)) == 2
    with pytest.raises(Closed):
        transactor.commit()
