"""What the portable layer makes of a sender that takes messages one by one and tells each receipt how it ended."""

import gc
import threading
import time
import weakref

import pytest
from scripted import ScriptedDriver, until

import brokerkit
from brokerkit.driver import Cause, Poster, Refused, Unknown
from brokerkit.errors import ConnectionLost, ProducerFull

AGAIN = Unknown(0, 0, Cause.DISCONNECTED, "cut")


class PostingSender(Poster):
    def __init__(self, driver, events):
        self.driver, self.events = driver, events
        self.posted = []
        self.over = self.closed = False
        self.post = self.take

    def take(self, receipt, *fields):
        if self.over:
            raise ConnectionLost("scripted")
        if len(self.posted) >= self.driver.capacity:
            return False
        self.posted.append((receipt, fields))
        return True

    @property
    def ids(self):
        return [fields[1] for _, fields in self.posted]

    def stored(self, *numbers, place=7):
        for number in numbers:
            self.posted[number][0].stored("topic", 0, place)
        self.events.told(len(numbers))

    def failed(self, outcome, *numbers):
        for number in numbers:
            self.posted[number][0].failed(outcome)
        self.events.told(len(numbers))

    def close(self, timeout):
        self.closed = True


class PostingDriver(ScriptedDriver):
    def sender(self, topic, guarantee, outcomes, events, **options):
        return self._open(self.senders, PostingSender(self, events))


@pytest.fixture
def driver():
    return PostingDriver()


def states(receipts):
    return [receipt.state for receipt in receipts]


def test_a_message_is_handed_over_at_once_with_its_fields(driver, broker):
    broker.producer("topic").send(b"x", id="evt", key="k", headers={"a": "b"}, content_type="text/plain")
    ((_, fields),) = driver.senders[0].posted
    assert fields == (b"x", "evt", "k", {"a": "b"}, "text/plain", 0)


def test_another_attempt_has_the_time_of_the_first(driver, broker):
    before = time.time() * 1000
    receipt = broker.producer("topic").send(b"x")
    after = time.time() * 1000
    time.sleep(0.1)
    driver.senders[0].failed(AGAIN, 0)
    until(lambda: len(driver.senders[0].posted) == 2)
    again = driver.senders[0].posted[1][1][5]
    assert before - 2 <= again <= after + 2
    assert receipt.published_at == receipt.message.published_at == again


def test_what_is_stored_is_confirmed_with_its_place(driver, broker):
    receipt = broker.producer("topic").send(b"x")
    driver.senders[0].stored(0)
    assert receipt.result(timeout=1) == brokerkit.Position("topic", 0, 7)
    assert (receipt.state, receipt.attempts, receipt.error) == ("confirmed", 1, None)


def test_without_a_place_it_is_confirmed_all_the_same(driver, broker):
    receipt = broker.producer("topic").send(b"x")
    driver.senders[0].stored(0, place=None)
    assert receipt.result(timeout=1) is None
    assert receipt.state == "confirmed"


def test_an_end_does_not_wait_for_its_turn(driver, broker):
    producer = broker.producer("topic")
    receipts = [producer.send(b"x") for _ in range(4)]
    driver.senders[0].stored(1, 3)
    assert states(receipts) == ["pending", "confirmed", "pending", "confirmed"]
    assert producer.in_flight == 2
    driver.senders[0].stored(2)
    driver.senders[0].stored(0)
    assert producer.flush(1) == 0


def test_ends_out_of_turn_that_were_passed_over_come_with_the_next(driver, broker):
    """Looking through all of them is rationed."""
    producer = broker.producer("topic", max_in_flight=50_000)
    receipts = [producer.send(b"x") for _ in range(20_000)]
    driver.senders[0].stored(10_000)
    driver.senders[0].stored(10_001)
    deadline = time.monotonic() + 5
    while receipts[10_001].state == "pending" and time.monotonic() < deadline:
        driver.senders[0].stored()
    assert states(receipts[9_999:10_003]) == ["pending", "confirmed", "confirmed", "pending"]


def test_somebody_who_waits_is_woken(driver, broker):
    receipt = broker.producer("topic").send(b"x")
    threading.Timer(0.05, driver.senders[0].stored, [0]).start()
    receipt.result(timeout=5)


def test_a_failed_attempt_is_tried_again_with_the_same_id(driver, broker):
    producer = broker.producer("topic")
    receipt = producer.send(b"x", id="evt")
    driver.senders[0].failed(AGAIN, 0)
    until(lambda: len(driver.senders[0].posted) == 2)
    assert driver.senders[0].ids == ["evt", "evt"]
    assert receipt.state == "pending"
    driver.senders[0].stored(1)
    receipt.result(timeout=1)
    assert receipt.attempts == 2


def test_once_an_attempt_was_unknown_a_refusal_ends_unknown(driver, broker):
    receipt = broker.producer("topic").send(b"x")
    driver.senders[0].failed(AGAIN, 0)
    until(lambda: len(driver.senders[0].posted) == 2)
    driver.senders[0].failed(Refused(0, 0, Cause.TOO_LARGE, "too large"), 1)
    with pytest.raises(brokerkit.SendUnknown, match="cut"):
        receipt.result(timeout=1)


def test_a_refusal_names_its_cause_each_time_it_is_raised(driver, broker):
    receipt = broker.producer("topic").send(b"x")
    driver.senders[0].failed(Refused(0, 0, Cause.TOO_LARGE, "11 MB"), 0)
    for _ in range(2):
        with pytest.raises(brokerkit.SendRefused, match="11 MB") as raised:
            receipt.result(timeout=1)
        assert raised.value.cause == Cause.TOO_LARGE
    assert receipt.state == "refused"


def test_a_full_client_is_offered_the_rest_later_and_in_order(driver, broker):
    driver.capacity = 2
    producer = broker.producer("topic")
    receipts = [producer.send(b"x", id=str(number)) for number in range(4)]
    assert driver.senders[0].ids == ["0", "1"]
    assert [receipt.attempts for receipt in receipts] == [1, 1, 0, 0]
    driver.capacity = 10
    until(lambda: len(driver.senders[0].posted) == 4)
    assert driver.senders[0].ids == ["0", "1", "2", "3"]


def test_what_a_session_took_with_it_goes_to_the_next_one(driver, broker, events):
    producer = broker.producer("topic")
    told, forgotten = producer.send(b"x", id="told"), producer.send(b"x", id="forgotten")
    driver.senders[0].posted[0][0].stored("topic", 0, 1)  # and the layer was not called any more
    driver.senders[0].over = True
    late = producer.send(b"x", id="late")
    second = driver.wait_for(driver.senders, 2)
    until(lambda: len(second.posted) == 2)
    assert told.state == "confirmed"
    assert second.ids == ["forgotten", "late"]
    second.stored(0, 1)
    assert states([forgotten, late]) == ["confirmed", "confirmed"]
    assert [event.kind for event in events][:2] == ["disconnected", "reconnected"]


def test_what_is_never_told_ends_unknown_with_the_delivery_timeout(driver, broker):
    receipt = broker.producer("topic", delivery_timeout=0.2).send(b"x")
    with pytest.raises(brokerkit.SendUnknown, match="no answer within"):
        receipt.result(timeout=5)
    driver.senders[0].stored(0)
    assert receipt.state == "unknown"


def test_the_bounds_hold(driver, broker):
    producer = broker.producer("topic", max_in_flight=2, when_full="fail")
    producer.send(b"x"), producer.send(b"x")
    with pytest.raises(ProducerFull):
        producer.send(b"x")
    driver.senders[0].stored(0)
    producer.send(b"x")
    heavy = broker.producer("topic", max_in_flight_bytes=10, when_full="fail")
    heavy.send(b"0123456789")
    with pytest.raises(ProducerFull):
        heavy.send(b"x")
    driver.senders[1].stored(0)
    heavy.send(b"x")


def test_a_send_that_waits_for_room_goes_on(driver, broker):
    producer = broker.producer("topic", max_in_flight=1)
    producer.send(b"x")
    threading.Timer(0.05, driver.senders[0].stored, [0]).start()
    producer.send(b"x")
    assert len(driver.senders[0].posted) == 2


def test_at_most_once_counts_what_was_refused_and_nothing_else(driver, broker):
    producer = broker.producer("topic", "at_most_once")
    receipts = [producer.send(b"x") for _ in range(3)]
    assert states(receipts) == ["unknown"] * 3
    driver.senders[0].stored(0)
    driver.senders[0].failed(Refused(0, 0, Cause.UNREACHABLE, "gone"), 1)
    driver.senders[0].failed(Unknown(0, 0, Cause.CLOSED, "closed"), 2)
    assert producer.dropped == 1
    assert producer.flush(1) == 0


def test_close_ends_what_the_broker_never_answered(driver, broker):
    producer = broker.producer("topic")
    receipt = producer.send(b"x")
    assert producer.close(0.2) == 1
    assert receipt.state == "unknown"
    with pytest.raises(brokerkit.Closed):
        producer.send(b"x")


def test_on_end_is_called_once_with_the_receipt(driver, broker):
    ended = []
    producer = broker.producer("topic")
    receipts = [producer.send(b"x", on_end=ended.append) for _ in range(2)]
    driver.senders[0].stored(0)
    driver.senders[0].failed(Refused(0, 0, Cause.INVALID, "no"), 1)
    until(lambda: len(ended) == 2)
    assert ended == receipts
    driver.senders[0].stored()
    time.sleep(0.05)
    assert len(ended) == 2


def test_a_receipt_that_has_ended_lets_its_callback_go(driver, broker):
    """It is no matter for the collector, and callbacks tend to hold what holds the receipt."""

    class Kept:
        def __init__(self):
            self.receipts = []

        def ended(self, receipt):
            self.told = receipt

    kept = Kept()
    receipt = broker.producer("topic").send(b"x", on_end=kept.ended)
    kept.receipts.append(receipt)
    driver.senders[0].stored(0)
    until(lambda: getattr(kept, "told", None) is receipt)
    gone = weakref.ref(kept)
    kept = None
    until(lambda: gc.collect() is not None and gone() is None)


def test_threads_that_send_at_once_lose_nothing(driver, broker):
    producer = broker.producer("topic")
    receipts = []

    def send():
        receipts.extend(producer.send(b"x") for _ in range(500))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    sender = driver.senders[0]
    ended = 0
    while ended < 2000:
        ready = len(sender.posted)
        sender.stored(*range(ended, ready))
        ended = ready
    for thread in threads:
        thread.join()
    assert producer.flush(5) == 0
    assert set(states(receipts)) == {"confirmed"}
    assert len(set(sender.ids)) == 2000
