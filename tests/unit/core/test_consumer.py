"""What the portable layer makes of deliveries, settlements, and a receiver's events."""

import gc
import threading
import weakref

import pytest
from scripted import ScriptedDriver, ScriptedIncoming, until

import brokerkit
from brokerkit.broker import Broker
from brokerkit.driver import End, Settlement, Traits


def opened(driver, events=None, **options):
    broker = Broker(driver, "scripted", events.append if events is not None else None)
    consumer = broker.consumer("topic", subscription="sub-a", **options)
    return broker, consumer, driver.receivers[-1]


def received(consumer, count):
    taken = []
    while len(taken) < count:
        taken += consumer.receive(count - len(taken), timeout=5)
    return taken


def test_acks_reach_the_driver_and_their_end_is_told():
    driver = ScriptedDriver()
    ended = []
    broker, consumer, receiver = opened(driver, on_end=ended.append)
    with broker:
        receiver.queue.extend(ScriptedIncoming(number) for number in range(3))
        deliveries = received(consumer, 3)
        for delivery in reversed(deliveries):
            delivery.ack()
        assert consumer.flush(5) == 0
        assert sorted(receiver.acks) == [0, 1, 2]
        assert {delivery.state for delivery in deliveries} == {"settled"}
        until(lambda: len(ended) == 3)


def test_a_delivery_tells_its_own_end_when_its_token_is_handed_out_again():
    driver = ScriptedDriver()
    broker, consumer, receiver = opened(driver)
    with broker:
        receiver.queue.append(ScriptedIncoming(1))
        [first] = received(consumer, 1)
        first.nack()
        assert consumer.flush(5) == 0
        receiver.queue.append(ScriptedIncoming(1))
        [again] = received(consumer, 1)
        with pytest.raises(brokerkit.AlreadySettled):
            first.ack()
        assert (first.state, again.state) == ("settled", "pending")
        driver.answer = None
        again.ack()
        until(lambda: receiver.acks == [1])
        assert (first.state, again.state) == ("settled", "settling")
        receiver.settled([Settlement([1], End.SENT)])
        assert (first.state, again.state) == ("settled", "sent")
        receiver.settled([Settlement([1], End.LOST)])
        assert (first.state, again.state) == ("settled", "lost")


def test_deliveries_that_are_kept_after_the_close_keep_nothing_else():
    class User:
        def __init__(self, broker):
            self.kept = []
            self.consumer = broker.consumer("topic", subscription="sub-a", on_end=self.kept.append)

    def used(driver):
        with Broker(driver, "scripted", None) as broker:
            user = User(broker)
            driver.receivers.pop().queue.extend(ScriptedIncoming(number) for number in range(4))
            held = user.held = received(user.consumer, 4)
            held[0].ack()
            until(lambda: user.kept)
            user.consumer.close()
            with pytest.raises(brokerkit.AlreadySettled):
                held[0].nack()
            for settle in (held[1].ack, held[2].nack, held[3].reject):
                with pytest.raises(brokerkit.Closed):
                    settle()
            return weakref.ref(user)

    gone = used(ScriptedDriver())
    gc.collect()
    assert gone() is None


def test_no_more_than_the_bound_is_in_flight():
    driver = ScriptedDriver()
    broker, consumer, receiver = opened(driver, prefetch=4)
    with broker:
        receiver.queue.extend(ScriptedIncoming(number) for number in range(10))
        taken = received(consumer, 4)
        assert consumer.receive(10, timeout=0.15) == []
        for delivery in taken:
            delivery.ack()
        assert len(received(consumer, 4)) == 4


def test_a_user_who_holds_most_of_the_bound_gets_the_rest_of_it():
    driver = ScriptedDriver()
    broker, consumer, receiver = opened(driver, prefetch=4)
    with broker:
        receiver.queue.extend(ScriptedIncoming(number) for number in range(3))
        received(consumer, 3)
        receiver.queue.extend(ScriptedIncoming(number) for number in range(3, 6))
        assert len(received(consumer, 1)) == 1
        assert consumer.receive(timeout=0.1) == []


def test_a_delivery_of_an_ended_session_is_lost_and_never_reaches_the_new_one():
    driver = ScriptedDriver()
    events = []
    broker, consumer, receiver = opened(driver, events)
    with broker:
        receiver.queue.append(ScriptedIncoming(7))
        [held] = received(consumer, 1)
        receiver.over = True
        second = driver.wait_for(driver.receivers, 2)
        until(lambda: consumer.state == "connected")
        with pytest.raises(brokerkit.LeaseLost):
            held.ack()
        assert held.lease.lost
        second.queue.append(ScriptedIncoming(7))
        [again] = received(consumer, 1)
        again.ack()
        assert consumer.flush(5) == 0
        assert (receiver.acks, second.acks) == ([], [7])
        until(lambda: [event.kind for event in events] == ["disconnected", "reconnected"])


def test_an_ack_without_an_answer_before_the_end_is_unknown():
    driver = ScriptedDriver()
    driver.answer = None
    broker, consumer, receiver = opened(driver)
    with broker:
        receiver.queue.append(ScriptedIncoming(1))
        [delivery] = received(consumer, 1)
        delivery.ack()
        until(lambda: receiver.acks)
        receiver.events.disconnected("cut")
        until(lambda: delivery.state == "unknown")


@pytest.mark.parametrize("settle", ["ack", "nack"])
def test_an_ack_in_the_moment_of_the_end_is_unknown(settle):
    """The session is over, and this delivery has not been told yet."""
    driver = ScriptedDriver()
    ended = []
    broker, consumer, receiver = opened(driver, on_end=ended.append)
    with broker:
        receiver.queue.append(ScriptedIncoming(1))
        [delivery] = received(consumer, 1)
        consumer._session.ledger.over = True
        getattr(delivery, settle)()
        assert delivery.state == "unknown"
        until(lambda: ended == [delivery])
        assert consumer.flush(5) == 0


def test_sent_may_become_settled_or_lost():
    driver = ScriptedDriver()
    driver.answer = End.SENT
    broker, consumer, receiver = opened(driver)
    with broker:
        receiver.queue.extend([ScriptedIncoming(1), ScriptedIncoming(2)])
        one, two = received(consumer, 2)
        one.ack()
        two.ack()
        until(lambda: (one.state, two.state) == ("sent", "sent"))
        receiver.settled([Settlement([1], End.SETTLED), Settlement([2], End.LOST)])
        assert (one.state, two.state) == ("settled", "lost")
        with pytest.raises(brokerkit.SettleError):
            two.ack()


def test_a_lost_lease_makes_the_ack_raise():
    driver = ScriptedDriver()
    events = []
    broker, consumer, receiver = opened(driver, events)
    with broker:
        receiver.queue.append(ScriptedIncoming(1))
        [delivery] = received(consumer, 1)
        receiver.events.lease_lost([1], "the consumer timeout is over")
        with pytest.raises(brokerkit.LeaseLost, match="consumer timeout"):
            delivery.ack()
        until(lambda: [event.kind for event in events] == ["lease_lost"])


def test_a_revoked_partition_waits_for_what_is_in_hand_and_drops_what_is_not_started():
    driver = ScriptedDriver()
    broker, consumer, receiver = opened(driver)
    with broker:
        receiver.queue.extend(ScriptedIncoming(number, lane=number % 2) for number in range(4))
        until(lambda: not receiver.queue)
        in_hand = received(consumer, 1)[0]  # lane 0; 2 is of lane 0 too and not started
        done = threading.Event()
        receiver.calls.append(lambda: (receiver.events.revoked([0], 5.0), done.set()))
        assert not done.wait(0.1)
        in_hand.ack()
        assert done.wait(5)
        assert receiver.acks == [0]
        assert [delivery._raw.token for delivery in received(consumer, 2)] == [1, 3]


def test_a_revoke_does_not_wait_for_ever():
    driver = ScriptedDriver()
    broker, consumer, receiver = opened(driver)
    with broker:
        receiver.queue.append(ScriptedIncoming(0))
        [delivery] = received(consumer, 1)
        done = threading.Event()
        receiver.calls.append(lambda: (receiver.events.revoked([0], 0.1), done.set()))
        assert done.wait(5)
        with pytest.raises(brokerkit.LeaseLost):
            delivery.ack()


def test_leases_are_renewed_from_receipt_on():
    driver = ScriptedDriver(Traits(lease_seconds=0.3, renewable=True))
    broker, consumer, receiver = opened(driver)
    with broker:
        receiver.queue.extend([ScriptedIncoming(1), ScriptedIncoming(2)])
        [held] = received(consumer, 1)
        until(lambda: sorted(set(receiver.extended)) == [1, 2])
        held.ack()
        consumer.flush(5)
        receiver.extended.clear()
        until(lambda: receiver.extended)
        assert set(receiver.extended) == {2}


def test_a_consumer_whose_handler_hangs_past_the_maximum_takes_no_more_until_somebody_asks():
    driver = ScriptedDriver(Traits(lease_seconds=0.15, renewable=True))
    broker, consumer, receiver = opened(driver, max_lease=0.2)
    with broker:
        receiver.queue.append(ScriptedIncoming(1))
        received(consumer, 1)
        until(lambda: consumer._session.keeper.overdue)
        renewed = len(receiver.extended)
        receiver.queue.append(ScriptedIncoming(2))
        assert not threading.Event().wait(0.3)
        assert (consumer.held, len(receiver.queue), len(receiver.extended)) == (1, 1, renewed)
        [other] = received(consumer, 1)
        assert other.id == "id-2"


def test_close_gives_back_what_was_not_settled():
    driver = ScriptedDriver()
    broker, consumer, receiver = opened(driver)
    receiver.queue.extend(ScriptedIncoming(number) for number in range(3))
    until(lambda: not receiver.queue)
    received(consumer, 1)[0].ack()
    assert consumer.close(5).given_back == 2
    assert sorted(nack.token for nack in receiver.nacks) == [1, 2]
    assert all(nack.unstarted for nack in receiver.nacks)
    assert receiver.closed
    broker.close()


def test_stop_ends_the_loop_and_what_is_in_hand_can_still_be_acked():
    driver = ScriptedDriver()
    broker, consumer, receiver = opened(driver)
    with broker:
        receiver.queue.extend(ScriptedIncoming(number) for number in range(3))
        for delivery in consumer:
            until(lambda: not receiver.queue)
            consumer.stop()
            until(lambda: len(receiver.nacks) == 2)
            delivery.ack()
        assert consumer.flush(5) == 0
        assert receiver.acks == [0]


def test_a_nack_is_republished_where_the_broker_has_none():
    driver = ScriptedDriver(Traits(nack="republish", nack_delay="republish"))
    driver.confirm_at_once = True
    broker, consumer, receiver = opened(driver)
    with broker:
        receiver.queue.append(ScriptedIncoming(5, attempt=2))
        [delivery] = received(consumer, 1)
        delivery.nack(delay=1)
        until(lambda: receiver.acks == [5])
        [(topic, message)] = driver.sent
        assert (topic, message.id, message.headers["brokerkit-attempt"]) == ("topic", "id-5", "3")
        assert "brokerkit-due" in message.headers


def test_a_copy_that_cannot_be_sent_on_ends_the_session_so_that_nothing_is_forgotten():
    from brokerkit.driver import Cause, Refused

    driver = ScriptedDriver(Traits(nack="republish"))
    broker, consumer, receiver = opened(driver)
    with broker:
        receiver.queue.append(ScriptedIncoming(5))
        [delivery] = received(consumer, 1)
        delivery.nack()
        until(lambda: driver.senders and driver.senders[0].taken)
        driver.senders[0].outcomes([Refused(0, 0, Cause.TOO_LARGE, "no")])
        driver.wait_for(driver.receivers, 2)
        assert receiver.acks == []


def test_the_last_attempt_goes_to_the_dead_letters_with_its_reason():
    driver = ScriptedDriver()
    driver.confirm_at_once = True
    events = []
    broker, consumer, receiver = opened(driver, events, attempts=2, dead_letter="graveyard")
    with broker:
        receiver.queue.extend([ScriptedIncoming(1, attempt=1), ScriptedIncoming(2, attempt=2)])
        for delivery in received(consumer, 2):
            delivery.nack()
        until(lambda: receiver.acks == [2])
        assert [nack.token for nack in receiver.nacks] == [1]
        [(topic, message)] = driver.sent
        assert topic == "graveyard"
        assert message.headers["brokerkit-dead-reason"] == "attempt 2 of 2 failed"
        until(lambda: [event.kind for event in events] == ["dead_lettered"])


def test_a_reject_without_dead_letters_says_what_to_do():
    driver = ScriptedDriver()
    broker, consumer, receiver = opened(driver)
    with broker:
        receiver.queue.append(ScriptedIncoming(1))
        [delivery] = received(consumer, 1)
        with pytest.raises(brokerkit.NotSupported, match="dead_letter="):
            delivery.reject("no")
        delivery.ack()


def test_at_most_once_hands_over_only_what_the_broker_has_taken_back():
    driver = ScriptedDriver()
    driver.answer = End.LOST
    broker, consumer, receiver = opened(driver, guarantee="at_most_once")
    with broker:
        receiver.queue.append(ScriptedIncoming(1))
        assert consumer.receive(timeout=0.3) == []
        driver.answer = End.SETTLED
        receiver.queue.append(ScriptedIncoming(2))
        assert [delivery._raw.token for delivery in consumer.receive(timeout=5)] == [2]


def test_what_ends_a_consumer_for_good_is_raised_to_its_reader():
    driver = ScriptedDriver()
    broker, consumer, receiver = opened(driver)

    def gone():
        raise brokerkit.PositionLost("the offsets are gone")

    with broker:
        receiver.calls.append(gone)
        with pytest.raises(brokerkit.PositionLost):
            for _ in range(100):
                consumer.receive(timeout=0.1)
