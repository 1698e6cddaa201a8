"""What a sender of the sqlite driver promises: one commit a call, and the truth about each message."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from brokerkit_sqlite.engine.session import CommitUnknown, Session

from brokerkit.driver import Cause, Confirmed, Position, Unknown
from brokerkit.errors import ConnectionLost, NotFound
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message, make


def test_a_call_confirms_all_its_messages_in_one_outcome_with_positions(rig):
    rig.declare()
    outbox = rig.outbox()
    outbox.send(b"1", b"2", b"3")
    outbox.send(b"4")
    assert len(set(map(id, outbox.outcomes.values()))) == 2
    assert [str(outbox.positions[number]) for number in range(4)] == [f"orders/0@{n}" for n in (1, 2, 3, 4)]


def test_confirmed_messages_are_in_the_file_for_everybody(rig):
    rig.declare()
    rig.outbox().send(Message(b"x", id="evt-1", headers={"a": "b"}))
    with closing(sqlite3.connect(rig.path)) as raw:
        found = raw.execute("SELECT topic, position, id, headers, body FROM published").fetchall()
    assert found == [("orders", 1, "evt-1", '{"a":"b"}', b"x")]


def test_at_most_once_tells_no_confirm(rig):
    rig.declare()
    outbox = rig.outbox(guarantee=Guarantee.AT_MOST_ONCE)
    outbox.send(b"x")
    assert outbox.outcomes == {}
    assert rig.inbox().bodies() == [b"x"]


def test_a_missing_topic_is_an_error_at_open(rig):
    rig.declare()
    with pytest.raises(NotFound, match="'nowhere'"):
        rig.outbox("nowhere")


def test_a_deleted_topic_refuses_by_name(rig):
    rig.declare()
    outbox = rig.outbox()
    rig.driver.delete("orders", None)
    outbox.send(b"x")
    assert [refused.cause for refused in outbox.refused()] == [Cause.TOPIC_MISSING]


def test_a_topic_without_subscriptions_refuses_unroutable(rig):
    rig.driver.declare("orders", [], {})
    outbox = rig.outbox()
    outbox.send(b"x", b"y")
    assert [refused.cause for refused in outbox.refused()] == [Cause.UNROUTABLE] * 2
    assert not any(refused.retry for refused in outbox.refused())


def test_bad_messages_are_refused_and_their_neighbours_confirmed(rig):
    rig.declare()
    outbox = rig.outbox(driver=rig.another(max_body_bytes=10))
    tombstone = make(Message, (None, "t", None, {}, None, 0, "producer"))
    surrogate = make(Message, (b"", "\ud800", None, {}, None, 0, "producer"))
    far_away = Message(b"", published_at=2**70)
    outbox.send(b"ok", b"x" * 11, tombstone, surrogate, far_away, b"ok too")
    assert {number: refused.cause for number, refused in outbox.outcomes.items() if number in (1, 2, 3, 4)} == {
        1: Cause.TOO_LARGE,
        2: Cause.INVALID,
        3: Cause.INVALID,
        4: Cause.INVALID,
    }
    assert isinstance(outbox.outcomes[0], Confirmed)
    assert isinstance(outbox.outcomes[5], Confirmed)
    assert rig.inbox().bodies() == [b"ok", b"ok too"]


def test_an_id_that_cannot_be_looked_up_is_refused_alone(rig):
    rig.declare()
    outbox = rig.outbox(guarantee=Guarantee.EXACTLY_ONCE)
    outbox.send(b"ok", make(Message, (b"", "\ud800", None, {}, None, 0, "producer")), b"ok too")
    assert [refused.cause for refused in outbox.refused()] == [Cause.INVALID]
    assert rig.inbox().bodies() == [b"ok", b"ok too"]


def test_a_locked_file_refuses_for_now_and_stores_nothing(rig):
    rig.declare()
    outbox = rig.outbox(driver=rig.another(busy_timeout=0.05))
    with closing(sqlite3.connect(rig.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        outbox.send(b"x")
        [refused] = outbox.refused()
        assert refused.cause is Cause.UNREACHABLE
        assert refused.retry
        assert "locked" in refused.detail
        other.execute("ROLLBACK")
    outbox.send(b"y")
    assert rig.inbox().bodies() == [b"y"]


def test_a_commit_that_fails_is_unknown_and_ends_the_session(rig, monkeypatch):
    rig.declare()
    outbox = rig.outbox()

    def fail(self):
        self.connection.execute("ROLLBACK")
        raise CommitUnknown("COMMIT failed: disk I/O error")

    monkeypatch.setattr(Session, "_commit", fail)
    outbox.send(b"x", b"y")
    assert all(isinstance(outbox.outcomes[number], Unknown) for number in (0, 1))
    assert outbox.events.named("disconnected")
    with pytest.raises(ConnectionLost):
        outbox.send(b"z")


def test_a_full_disk_refuses_for_now_and_stores_nothing(rig):
    rig.declare()
    outbox = rig.outbox()
    session = outbox.sender._session
    session.connection.execute(
        f"PRAGMA max_page_count={session.connection.execute('PRAGMA page_count').fetchone()[0] + 1}"
    )
    outbox.send(b"x" * 1_000_000)
    [refused] = outbox.refused()
    assert refused.cause is Cause.QUEUE_FULL
    assert refused.retry
    session.connection.execute("PRAGMA max_page_count=1000000")
    outbox.send(b"y")
    assert rig.inbox().bodies() == [b"y"]


def test_a_delayed_send_waits_for_its_time(rig):
    rig.declare("orders", "main", "other")
    outbox = rig.outbox()
    outbox.send(b"later", delay=0.3)
    outbox.send(b"now")
    main, other = rig.inbox(), rig.inbox(name="other")
    assert main.bodies() == [b"now"]
    assert other.bodies() == [b"now"]
    assert rig.driver.depth("orders", "main") == 2
    assert main.bodies() == [b"later"]
    assert other.bodies() == [b"later"]


def test_many_delayed_sends_do_not_hide_those_behind_them(rig):
    rig.declare()
    outbox = rig.outbox()
    outbox.send(*[b"later"] * 1000, delay=60)
    outbox.send(b"now")
    assert rig.inbox().bodies(count=10) == [b"now"]
    assert rig.driver.depth("orders", "main") == 1001


def test_a_send_to_one_subscription_reaches_no_other(rig):
    rig.declare("orders", "main", "other")
    aside = rig.outbox(subscription="other")
    aside.send(b"for other", delay=0.05)
    other = rig.inbox(name="other")
    [received] = other.receive()
    assert received.body == b"for other"
    assert received.position == Position("orders", "side", 1)
    assert rig.inbox().nothing()
    assert other.ack(received) == ["settled"]
    assert rig.driver.depth("orders", "other") == 0


def test_exactly_once_stores_an_id_once_and_confirms_where(rig):
    rig.declare()
    outbox = rig.outbox(guarantee=Guarantee.EXACTLY_ONCE)
    outbox.send(Message(b"1", id="a"), Message(b"2", id="b"), Message(b"1 again", id="a"))
    rig.outbox(guarantee=Guarantee.EXACTLY_ONCE, driver=rig.another()).send(Message(b"2 again", id="b"))
    outbox.send(Message(b"3", id="c"), Message(b"1 and again", id="a"))
    assert [outbox.positions[number].value for number in range(5)] == [1, 2, 1, 3, 1]
    assert rig.inbox().bodies() == [b"1", b"2", b"3"]


def test_exactly_once_recognises_an_id_after_the_message_is_gone(rig):
    rig.declare()
    outbox, inbox = rig.outbox(guarantee=Guarantee.EXACTLY_ONCE), rig.inbox()
    outbox.send(Message(b"1", id="a"))
    inbox.ack(*inbox.receive())
    outbox.send(Message(b"1", id="a"))
    assert inbox.nothing()


def test_ids_are_forgotten_after_the_window(rig):
    rig.declare()
    outbox = rig.outbox(guarantee=Guarantee.EXACTLY_ONCE, driver=rig.another(dedup_window_seconds=0.001))
    outbox.send(Message(b"1", id="a"))
    session = outbox.sender._session
    session.connection.execute("UPDATE ids SET at = at - 10")
    outbox.send(Message(b"2", id="a"), Message(b"3", id="b"))
    assert rig.inbox().bodies() == [b"1", b"2", b"3"]
    assert session.connection.execute("SELECT count(*) FROM ids").fetchone() == (2,)


def test_the_same_id_on_another_topic_is_another_message(rig):
    rig.declare("orders")
    rig.declare("bills")
    for topic in ("orders", "bills"):
        rig.outbox(topic, guarantee=Guarantee.EXACTLY_ONCE).send(Message(b"x", id="a"))
    assert rig.inbox("orders").bodies() == rig.inbox("bills").bodies() == [b"x"]


def test_use_after_close_is_an_error(rig):
    rig.declare()
    outbox = rig.outbox()
    outbox.sender.close(1.0)
    with pytest.raises(ConnectionLost):
        outbox.send(b"x")
