"""What the portable layer makes of a sender's outcomes and of the end of its session."""

import time

import pytest
from scripted import ScriptedDriver, until

import brokerkit
from brokerkit.broker import Broker
from brokerkit.driver import Cause, Confirmed, Refused, Unknown


@pytest.fixture
def driver():
    return ScriptedDriver()


def test_a_range_confirms_every_message_in_it(driver, broker):
    producer = broker.producer("topic")
    receipts = producer.send_many([b"0", b"1", b"2", b"3"])
    driver.senders[0].outcomes([Confirmed(1, 2)])
    assert [receipt.state for receipt in receipts] == ["pending", "confirmed", "confirmed", "pending"]
    driver.senders[0].outcomes([Confirmed(0, 0), Confirmed(3, 3)])
    assert producer.flush(1) == 0


def test_an_unknown_attempt_is_tried_again_with_the_same_id(driver, broker):
    producer = broker.producer("topic")
    receipt = producer.send(b"x", id="evt")
    driver.senders[0].outcomes([Unknown(0, 0, Cause.NACKED, "nacked")])
    until(lambda: len(driver.sent) == 2)
    assert [message.id for _, message in driver.sent] == ["evt", "evt"]
    assert receipt.state == "pending"
    driver.senders[0].outcomes([Confirmed(1, 1)])
    receipt.result(timeout=1)
    assert receipt.attempts == 2


def test_once_an_attempt_was_unknown_a_refusal_ends_unknown(driver, broker):
    producer = broker.producer("topic")
    receipt = producer.send(b"x")
    driver.senders[0].outcomes([Unknown(0, 0, Cause.NACKED, "nacked")])
    until(lambda: len(driver.sent) == 2)
    driver.senders[0].outcomes([Refused(1, 1, Cause.UNROUTABLE, "returned")])
    with pytest.raises(brokerkit.SendUnknown):
        receipt.result(timeout=1)


def test_a_refusal_that_is_final_is_not_tried_again(driver, broker):
    producer = broker.producer("topic")
    receipt = producer.send(b"x")
    driver.senders[0].outcomes([Refused(0, 0, Cause.TOO_LARGE, "too large")])
    with pytest.raises(brokerkit.SendRefused) as refused:
        receipt.result(timeout=1)
    assert refused.value.cause == "too_large"
    assert len(driver.sent) == 1


def test_a_new_session_sends_what_is_outstanding_first_and_in_order(driver, broker, events):
    producer = broker.producer("topic")
    receipts = producer.send_many([b"0", b"1", b"2"])
    driver.refuse_to_open = 2
    driver.senders[0].end(Unknown(0, 1, Cause.DISCONNECTED, "cut"), Unknown(2, 2, Cause.DISCONNECTED, "cut"))
    late = producer.send(b"3")
    second = driver.wait_for(driver.senders, 2)
    until(lambda: len(second.taken) == 4)
    assert [message.body for message in second.taken] == [b"0", b"1", b"2", b"3"]
    second.outcomes([Confirmed(0, 3)])
    assert producer.flush(1) == 0
    assert {receipt.state for receipt in [*receipts, late]} == {"confirmed"}
    until(lambda: [event.kind for event in events] == ["disconnected", "reconnected"])


def test_outcomes_of_an_old_session_do_not_touch_the_new_one(driver, broker):
    producer = broker.producer("topic")
    receipt = producer.send(b"x")
    first = driver.senders[0]
    first.end(Unknown(0, 0, Cause.DISCONNECTED, "cut"))
    second = driver.wait_for(driver.senders, 2)
    until(lambda: second.taken)
    first.outcomes([Confirmed(0, 0)])
    assert receipt.state == "pending"
    second.outcomes([Confirmed(0, 0)])
    receipt.result(timeout=1)


def test_a_driver_that_forgets_an_outcome_loses_nothing(driver, broker):
    producer = broker.producer("topic")
    receipt = producer.send(b"x")
    driver.senders[0].end()
    second = driver.wait_for(driver.senders, 2)
    until(lambda: second.taken)
    second.outcomes([Confirmed(0, 0)])
    receipt.result(timeout=1)


def test_the_delivery_timeout_ends_a_send_unknown(driver, broker):
    producer = broker.producer("topic", delivery_timeout=0.2)
    receipt = producer.send(b"x")
    with pytest.raises(brokerkit.SendUnknown, match="delivery timeout"):
        receipt.result(timeout=5)
    driver.senders[0].outcomes([Confirmed(0, 0)])
    assert receipt.state == "unknown"


def test_a_send_that_was_never_handed_over_ends_refused(driver, broker):
    driver.capacity = 0
    producer = broker.producer("topic", delivery_timeout=0.2)
    receipt = producer.send(b"x")
    with pytest.raises(brokerkit.SendRefused) as refused:
        receipt.result(timeout=5)
    assert refused.value.cause == "unreachable"


def test_a_pending_receipt_times_out_and_goes_on(driver, broker):
    producer = broker.producer("topic")
    receipt = producer.send(b"x")
    with pytest.raises(TimeoutError):
        receipt.result(timeout=0.05)
    driver.senders[0].outcomes([Confirmed(0, 0)])
    assert receipt.result(timeout=1) is None


def test_at_most_once_sends_once_and_waits_for_nothing(driver, broker, events):
    producer = broker.producer("topic", "at_most_once")
    receipt = producer.send(b"x")
    assert receipt.state == "unknown"
    driver.refuse_to_open = 10**6
    driver.senders[0].over = True
    producer.send(b"lost")
    until(lambda: producer.dropped)
    assert producer.flush(1) == 0
    assert [message.body for _, message in driver.sent] == [b"x"]
    until(lambda: "dropped" in [event.kind for event in events])


def test_close_reports_what_did_not_end(driver, broker):
    producer = broker.producer("topic")
    receipt = producer.send(b"x")
    assert producer.close(timeout=0.1) == 1
    with pytest.raises(brokerkit.SendUnknown):
        receipt.result(timeout=0)
    assert driver.senders[0].closed


def test_the_bound_on_bytes_holds(driver, broker):
    producer = broker.producer("topic", max_in_flight_bytes=10, when_full="fail")
    producer.send(b"x" * 10)
    with pytest.raises(brokerkit.ProducerFull):
        producer.send(b"y")
    driver.senders[0].outcomes([Confirmed(0, 0)])
    producer.send(b"y")
    assert producer.in_flight == 1
    driver.senders[0].outcomes([Confirmed(1, 1)])


def test_a_waiting_send_goes_on_when_there_is_room(driver, broker):
    driver.confirm_at_once = True
    producer = broker.producer("topic", max_in_flight=3)
    receipts = producer.send_many(b"%d" % number for number in range(100))
    assert producer.flush(5) == 0
    assert {receipt.state for receipt in receipts} == {"confirmed"}
    assert [message.body for _, message in driver.sent] == [b"%d" % number for number in range(100)]


def test_a_callback_that_raises_ends_nothing(driver, broker):
    producer = broker.producer("topic")
    producer.send(b"x", on_end=lambda receipt: 1 / 0)
    driver.senders[0].outcomes([Confirmed(0, 0)])
    receipt = producer.send(b"y")
    driver.senders[0].outcomes([Confirmed(1, 1)])
    receipt.result(timeout=1)


def test_a_callback_may_send(driver, broker):
    driver.confirm_at_once = True
    producer = broker.producer("topic")
    producer.send(b"x", on_end=lambda receipt: producer.send(b"y"))
    until(lambda: len(driver.sent) == 2)


def test_a_blocking_senders_calls_are_made_on_the_workers_thread():
    driver = ScriptedDriver(blocking=True)
    driver.confirm_at_once = True
    with Broker(driver, "scripted") as broker:
        producer = broker.producer("topic")
        began = time.monotonic()
        receipts = producer.send_many(b"%d" % number for number in range(2000))
        assert producer.flush(5) == 0
        assert {receipt.state for receipt in receipts} == {"confirmed"}
        assert [message.body for _, message in driver.sent] == [b"%d" % number for number in range(2000)]
        assert time.monotonic() - began < 5
