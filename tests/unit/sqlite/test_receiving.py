"""What a receiver of the sqlite driver promises: leases, settlements, attempts, dead letters."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from brokerkit.driver import Nack, Position, Reject
from brokerkit.errors import Closed, ConnectionLost, NotFound, PositionLost
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message


def test_everything_of_a_message_arrives(rig):
    rig.declare()
    sent = Message(b"\x00\xff", "evt-1", "käse", {"text": "ü", "bytes": b"\xff\x00", "empty": ""}, "text/plain", 17)
    rig.outbox().send(sent)
    [received] = rig.inbox().receive()
    assert (received.body, received.id, received.key, dict(received.headers)) == (*sent[:3], dict(sent.headers))
    assert (received.content_type, received.published_at, received.id_source) == ("text/plain", 17, "producer")
    assert (received.position, received.attempt, received.topic) == (Position("orders", 0, 1), 1, "orders")
    assert received.size == 2


def test_every_subscription_gets_every_message(rig):
    rig.declare("orders", "main", "other")
    rig.outbox().send(b"1", b"2")
    main, other = rig.inbox(), rig.inbox(name="other")
    assert main.ack(*main.receive()) == ["settled"] * 2
    assert other.bodies() == [b"1", b"2"]
    assert (rig.driver.depth("orders", "main"), rig.driver.depth("orders", "other")) == (0, 2)


def test_a_message_is_stored_until_the_last_subscription_has_settled_it(rig):
    rig.declare("orders", "main", "other")
    rig.outbox().send(b"1", b"2", b"3")
    inboxes = rig.inbox(), rig.inbox(name="other")
    stored = []
    for inbox in inboxes:
        received = inbox.receive()
        inbox.ack(received[1])
        inbox.ack(received[2], received[0])
        stored.append(inbox.receiver._session.connection.execute("SELECT count(*) FROM messages").fetchone()[0])
    assert stored == [3, 0]


def test_consumers_of_one_subscription_share_its_messages(rig):
    rig.declare()
    rig.outbox().send(*[b"%d" % number for number in range(10)])
    one, two = rig.inbox(), rig.inbox(driver=rig.another())
    assert one.bodies(count=6) + two.bodies() == [b"%d" % number for number in range(10)]
    assert one.nothing()


def test_an_ack_is_final_and_a_second_one_is_lost(rig):
    rig.declare()
    rig.outbox().send(b"x")
    inbox = rig.inbox(driver=rig.another(lease_seconds=0.1))
    [received] = inbox.receive()
    assert inbox.ack(received) == ["settled"]
    assert inbox.ack(received) == ["lost"]
    assert inbox.receive(1, 0.3) == ()
    assert rig.driver.depth("orders", "main") == 0


def test_a_lease_that_ends_hands_over_and_the_late_ack_is_lost(rig):
    rig.declare()
    rig.outbox().send(b"x")
    frozen, other = rig.inbox(driver=rig.another(lease_seconds=0.1)), rig.inbox()
    [late] = frozen.receive()
    [taken] = other.receive()
    assert (late.attempt, taken.attempt) == (1, 2)
    assert frozen.ack(late) == ["lost"]
    assert rig.driver.depth("orders", "main") == 1
    assert other.ack(taken) == ["settled"]


def test_in_one_batch_the_lost_are_told_from_the_settled(rig):
    rig.declare()
    rig.outbox().send(b"1", b"2", b"3", b"4")
    frozen = rig.inbox(driver=rig.another(lease_seconds=0.1))
    late = frozen.receive()
    frozen.ack(late[1])
    frozen.receiver.extend([late[3].token], 30.0)
    assert rig.inbox().bodies(2) == [b"1", b"3"]
    assert frozen.ack(*late) == ["lost", "lost", "lost", "settled"]


def test_extending_keeps_the_lease_and_tells_which_were_over(rig):
    rig.declare()
    rig.outbox().send(b"kept", b"over")
    holder, other = rig.inbox(driver=rig.another(lease_seconds=0.2)), rig.inbox()
    kept, over = holder.receive()
    holder.receiver.extend([kept.token], 30.0)
    assert other.bodies() == [b"over"]
    holder.receiver.extend([kept.token, over.token], 30.0)
    [(lost, _)] = holder.events.named("lease_lost")
    assert lost == [over.token]
    assert other.nothing()
    assert holder.ack(kept) == ["settled"]


def test_a_shortened_lease_ends_when_it_says(rig):
    rig.declare()
    rig.outbox().send(b"x")
    holder, other = rig.inbox(), rig.inbox()
    [received] = holder.receive()
    holder.receiver.extend([received.token], 0.1)
    assert other.bodies(timeout=2.0) == [b"x"]


def test_a_nacked_message_comes_back_with_the_next_attempt(rig):
    rig.declare()
    rig.outbox().send(b"1", b"2")
    inbox = rig.inbox()
    first, _ = inbox.receive()
    inbox.settle(nacks=[Nack(first.token)])
    [again] = inbox.receive()
    assert (again.body, again.attempt) == (b"1", 2)
    assert inbox.ends[first.token] == "settled"


def test_a_delayed_nack_waits_while_others_go_on(rig):
    rig.declare()
    outbox = rig.outbox()
    outbox.send(b"1")
    inbox = rig.inbox()
    [first] = inbox.receive()
    nacked = time.monotonic()
    inbox.settle(nacks=[Nack(first.token, delay=0.3)])
    outbox.send(b"2")
    assert inbox.bodies() == [b"2"]
    assert inbox.bodies() == [b"1"]
    assert time.monotonic() - nacked >= 0.29


def test_giving_back_unstarted_burns_no_attempt(rig):
    rig.declare(attempts=2, dead_letter="orders-dead")
    rig.outbox().send(b"x")
    inbox = rig.inbox()
    for _ in range(5):
        [received] = inbox.receive()
        assert received.attempt == 1
        inbox.settle(nacks=[Nack(received.token, unstarted=True)])


def test_a_rejected_message_moves_to_the_dead_letters_with_its_reason(rig):
    rig.declare(dead_letter="graves")
    rig.outbox().send(Message(b"x", "evt-1", "k", {"a": "b"}, "text/plain", 17))
    inbox = rig.inbox()
    [received] = inbox.receive()
    inbox.settle(rejects=[Reject(received.token, "cannot be parsed")])
    assert inbox.ends[received.token] == "settled"
    [dead] = rig.inbox("graves", name="dead").receive()
    assert (dead.body, dead.id, dead.key, dead.content_type, dead.published_at) == (
        b"x",
        "evt-1",
        "k",
        "text/plain",
        17,
    )
    assert dict(dead.all_headers) == {
        "a": "b",
        "brokerkit-dead-reason": "cannot be parsed",
        "brokerkit-attempt": "1",
    }
    assert rig.driver.depth("orders", "main") == 0


def test_dead_letters_survive_that_somebody_deleted_their_topic(rig):
    rig.declare(dead_letter="graves")
    rig.outbox().send(b"x")
    inbox = rig.inbox()
    [received] = inbox.receive()
    rig.driver.delete("graves", None)
    inbox.settle(rejects=[Reject(received.token, "no good")])
    assert rig.inbox("graves", name="dead").bodies() == [b"x"]


@pytest.mark.parametrize("how", ["nacked", "left until the lease ended"])
def test_after_n_attempts_a_message_is_dead_and_the_reason_says_so(rig, how):
    rig.declare(attempts=3, dead_letter="graves")
    rig.outbox().send(b"poison", b"good")
    inbox = rig.inbox(driver=rig.another(lease_seconds=0.1))
    seen = []
    deadline = time.monotonic() + 10
    while rig.driver.depth("graves", "dead") == 0:
        assert time.monotonic() < deadline, f"not dead-lettered after attempts {seen}"
        for received in inbox.receive(timeout=0.3):
            if received.body == b"good":
                inbox.ack(received)
                continue
            seen.append(received.attempt)
            if how == "nacked":
                inbox.settle(nacks=[Nack(received.token)])
    assert seen == [1, 2, 3]
    [dead] = rig.inbox("graves", name="dead").receive()
    assert dead.body == b"poison"
    assert "3 times" in dead.all_headers["brokerkit-dead-reason"]
    assert rig.driver.depth("orders", "main") == 0


def test_declared_settings_are_told_to_a_consumer_that_knows_nothing(rig):
    rig.declare(attempts=4, dead_letter="graves", native={"lease_seconds": 7})
    traits = rig.inbox(driver=rig.another()).receiver.traits
    assert (traits.attempts, traits.dead_letter, traits.lease_seconds) == (4, "graves", 7.0)
    assert (traits.nack, traits.nack_delay, traits.dead_letters) == ("native", "native", "native")
    assert traits.renewable
    assert traits.answers_acks


def test_at_most_once_drops_what_was_seen_before_and_keeps_what_was_not(rig):
    rig.declare()
    rig.outbox().send(b"seen", b"unseen")
    careful = rig.inbox()
    [seen] = careful.receive(1)
    careful.settle(nacks=[Nack(seen.token)])
    killed = rig.inbox(guarantee=Guarantee.AT_MOST_ONCE, driver=rig.another(lease_seconds=0.1))
    assert killed.bodies() == [b"unseen"]
    again = rig.inbox(guarantee=Guarantee.AT_MOST_ONCE)
    [received] = again.receive()
    assert (received.body, received.attempt) == (b"unseen", 1)
    again.ack(received)
    assert rig.driver.depth("orders", "main") == 0


def test_prefetch_bounds_what_is_held(rig):
    rig.declare()
    rig.outbox().send(*[b"x" * 100] * 20)
    inbox = rig.inbox(prefetch=5)
    held = inbox.receive()
    assert len(held) == 5
    assert inbox.receive(100, 0.05) == ()
    inbox.ack(*held[:2])
    assert len(inbox.receive()) == 2


def test_prefetch_bytes_bounds_what_is_held_but_never_below_one_message(rig):
    rig.declare()
    rig.outbox().send(*[b"x" * 100] * 10)
    inbox = rig.inbox(prefetch_bytes=250)
    first = inbox.receive()
    assert len(first) == 2
    inbox.ack(*first)
    small = rig.inbox(prefetch_bytes=10)
    assert len(small.receive()) == 1
    assert small.receive(100, 0.05) == ()


def test_closing_gives_back_at_once(rig):
    rig.declare()
    rig.outbox().send(b"x")
    inbox = rig.inbox()
    inbox.receive()
    inbox.receiver.close(1.0)
    [again] = rig.inbox().receive(timeout=1.0)
    assert again.attempt == 2
    with pytest.raises(Closed):
        inbox.receive()


def test_closing_ends_a_receive_that_waits(rig):
    rig.declare()
    inbox = rig.inbox()
    ended = []

    def wait():
        try:
            ended.append(inbox.receive(timeout=30.0))
        except Closed as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    inbox.receiver.close(5.0)
    thread.join(5.0)
    assert not thread.is_alive()
    assert len(ended) == 1


def test_a_forked_child_closes_at_once_what_a_thread_of_its_parent_was_using(rig):
    rig.declare()
    receiver = rig.inbox().receiver
    using, done = threading.Event(), threading.Event()

    def use():
        with receiver._session.transaction():
            using.set()
            done.wait(10.0)

    thread = threading.Thread(target=use)
    thread.start()
    assert using.wait(5.0)
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        receiver.close(1.0)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join(5.0)
    assert status == 0


def test_a_waiting_receiver_wakes_for_another_connections_send(rig):
    rig.declare()
    inbox, outbox = rig.inbox(), rig.outbox(driver=rig.another())
    arrived = []
    thread = threading.Thread(target=lambda: arrived.append((inbox.bodies(timeout=10.0), time.monotonic())))
    thread.start()
    deadline = time.monotonic() + 5
    while inbox.receiver._leases._interval < 0.015:
        assert time.monotonic() < deadline, "the receiver does not slow down"
        time.sleep(0.01)
    sent = time.monotonic()
    outbox.send(b"x")
    thread.join(10.0)
    [(bodies, at)] = arrived
    assert bodies == [b"x"]
    assert at - sent < 0.5


def test_settling_from_another_thread_while_receive_waits(rig):
    rig.declare()
    rig.outbox().send(*[b"x"] * 100)
    inbox = rig.inbox()
    received = inbox.receive()
    arrived = []
    thread = threading.Thread(target=lambda: arrived.append(inbox.receive(timeout=10.0)))
    thread.start()
    for one in received[1:]:
        assert inbox.ack(one) == ["settled"]
    inbox.settle(nacks=[Nack(received[0].token)])
    thread.join(10.0)
    assert [one.attempt for one in arrived[0]] == [2]


def test_a_deleted_subscription_ends_the_session(rig):
    rig.declare()
    inbox = rig.inbox()
    rig.driver.delete("orders", "main")
    with pytest.raises(ConnectionLost, match="deleted"):
        inbox.receive()
    assert len(inbox.events.named("disconnected")) == 1
    with pytest.raises(NotFound, match="'main'"):
        rig.inbox()


def test_several_topics_are_received_in_turn(rig):
    rig.declare("orders")
    rig.declare("bills")
    for topic in ("orders", "bills"):
        rig.outbox(topic).send(*[topic.encode()] * 3)
    inbox = rig.inbox("orders", "bills")
    received = [*inbox.receive(), *inbox.receive()]
    assert sorted(one.topic for one in received) == ["bills"] * 3 + ["orders"] * 3
    assert inbox.ack(*received) == ["settled"] * 6
    assert rig.driver.depth("orders", "main") == rig.driver.depth("bills", "main") == 0


def test_now_begins_with_the_next_message(rig):
    rig.declare()
    outbox = rig.outbox()
    outbox.send(b"before")
    rig.declare("orders", "late")
    outbox.send(b"after")
    assert rig.inbox(name="late").bodies() == [b"after"]


def test_earliest_begins_with_the_oldest_message_still_stored(rig):
    rig.declare()
    outbox, inbox = rig.outbox(), rig.inbox()
    outbox.send(b"1", b"2", b"3", b"4", b"5")
    taken = inbox.receive(4)
    inbox.ack(taken[0], taken[2])
    rig.declare("orders", "late", start="earliest")
    late = rig.inbox(name="late")
    assert rig.driver.depth("orders", "late") == 3
    assert sorted(late.bodies() + late.bodies(timeout=0)) == [b"2", b"4", b"5"]


def test_with_retention_earliest_begins_with_what_was_settled_too(rig):
    rig.declare(native={"retention_seconds": 3600})
    outbox, inbox = rig.outbox(), rig.inbox()
    outbox.send(b"1", b"2", b"3")
    inbox.ack(*inbox.receive())
    rig.declare("orders", "late", start="earliest")
    assert rig.driver.depth("orders", "late") == 3
    assert rig.inbox(name="late").bodies() == [b"1", b"2", b"3"]


def test_retention_ends_and_never_takes_what_is_not_settled(rig):
    rig.declare("orders", "main", native={"retention_seconds": 60})
    outbox, inbox = rig.outbox(), rig.inbox()
    outbox.send(b"settled", b"held", b"waiting")
    settled, held = inbox.receive(2)
    inbox.ack(settled)
    raw = inbox.receiver._session.connection
    raw.execute("UPDATE messages SET stored_at = stored_at - 61000")
    outbox.send(b"new")
    assert raw.execute("SELECT body FROM messages ORDER BY seq").fetchall() == [(b"held",), (b"waiting",), (b"new",)]
    inbox.ack(held)
    assert raw.execute("SELECT body FROM messages ORDER BY seq").fetchall() == [(b"waiting",), (b"new",)]
    assert inbox.bodies() == [b"waiting", b"new"]


def test_positions_tell_where_it_goes_on_and_an_answer_moves_it(rig):
    rig.declare(native={"retention_seconds": 3600})
    rig.outbox().send(*[b"%d" % number for number in range(1, 7)])
    first = rig.inbox()
    [*settled, held] = first.receive(4)
    first.ack(*settled)
    back = rig.inbox(answer={0: Position("orders", 0, 2)})
    assert back.events.named("assigned") == [[Position("orders", 0, 5)]]
    assert first.ack(held) == ["lost"]
    assert back.bodies() == [b"2", b"3", b"4", b"5", b"6"]
    assert rig.driver.depth("orders", "main") == 5
    ahead = rig.inbox(answer={0: Position("orders", 0, 7)})
    assert ahead.nothing()


def test_an_answer_may_skip(rig):
    rig.declare()
    rig.outbox().send(*[b"%d" % number for number in range(1, 7)])
    ahead = rig.inbox(answer={0: Position("orders", 0, 5)})
    assert ahead.bodies() == [b"5", b"6"]
    assert ahead.receiver._session.connection.execute("SELECT count(*) FROM messages").fetchone() == (2,)


@pytest.mark.parametrize("value", [1, 99, 0, "x"])
def test_a_place_that_is_not_kept_is_an_error_by_name(rig, value):
    rig.declare()
    rig.outbox().send(b"1", b"2")
    inbox = rig.inbox()
    inbox.ack(*inbox.receive())
    with pytest.raises(PositionLost, match="orders"):
        rig.inbox(answer={0: Position("orders", 0, value)})


def test_a_locked_file_is_trouble_and_not_the_end(rig):
    rig.declare()
    rig.outbox().send(b"x", b"y")
    inbox = rig.inbox(driver=rig.another(busy_timeout=0.05))
    [x] = inbox.receive(1)
    blocker = rig.outbox().sender._session
    with blocker.transaction():
        assert inbox.receive(1, 0.02) == ()
        assert inbox.receive(1, 0.1) == ()
        assert inbox.receive(1, 0.0) == ()
        assert inbox.ack(x) == ["lost"]
    assert inbox.bodies(1) == [b"y"]
    assert [name for name, _ in inbox.events.told] == ["assigned", "trouble", "recovered"]


def test_depth_counts_ready_leased_and_delayed(rig):
    rig.declare()
    outbox, inbox = rig.outbox(), rig.inbox()
    outbox.send(*[b"x"] * 5)
    outbox.send(b"x", delay=60)
    received = inbox.receive(3)
    inbox.settle(nacks=[Nack(received[0].token, 60)], acks=[received[1].token])
    assert rig.driver.depth("orders", "main") == 5
    with pytest.raises(NotFound):
        rig.driver.depth("orders", "other")


def test_a_topic_made_again_is_empty_and_old_tokens_touch_nothing(rig):
    rig.declare()
    rig.outbox().send(b"old")
    inbox = rig.inbox()
    [old] = inbox.receive()
    rig.driver.delete("orders", None)
    rig.declare()
    rig.outbox().send(b"new")
    assert inbox.ack(old) == ["lost"]
    assert rig.inbox().bodies() == [b"new"]


def test_deleting_a_subscription_frees_what_only_it_needed(rig):
    rig.declare("orders", "main", "other")
    rig.outbox().send(b"1", b"2")
    rig.outbox(subscription="other").send(b"aside")
    main = rig.inbox()
    main.ack(*main.receive(1))
    rig.driver.delete("orders", "other")
    stored = main.receiver._session.connection.execute("SELECT body FROM messages").fetchall()
    assert stored == [(b"2",)]
    rig.driver.delete("orders", "other")
    rig.driver.delete("never-there", None)
