"""The portable layer on the in-process broker: what users hold, without a real broker in the way."""

import os
import threading
import time
import uuid

import pytest

import brokerkit


@pytest.fixture
def broker():
    with brokerkit.connect(f"memory://{uuid.uuid4().hex}") as broker:
        broker.declare("payments", ["ledger"], attempts=3)
        yield broker


def send(broker, *bodies, **kwargs):
    with broker.producer("payments") as producer:
        for body in bodies:
            producer.send(body, **kwargs).result(timeout=5)


def test_a_message_arrives_as_it_was_sent(broker):
    with broker.producer("payments") as producer:
        receipt = producer.send(b"x", id="evt-1", key="k", headers={"a": "b", "c": b"\xff"}, content_type="text/plain")
        assert receipt.result(timeout=5) == brokerkit.Position("payments", 0, 0)
    with broker.consumer("payments", subscription="ledger") as consumer:
        [delivery] = consumer.receive(timeout=5)
        assert (delivery.body, delivery.id, delivery.key) == (b"x", "evt-1", "k")
        assert dict(delivery.headers) == {"a": "b", "c": b"\xff"}
        assert (delivery.content_type, delivery.attempt, delivery.topic) == ("text/plain", 1, "payments")
        delivery.ack()
        assert consumer.flush(5) == 0
        assert delivery.state == "settled"
    assert broker.depth("payments", "ledger") == 0


def test_what_is_not_acked_comes_again_with_its_attempt_counted(broker):
    send(broker, b"x")
    with broker.consumer("payments", subscription="ledger") as consumer:
        for attempt in (1, 2):
            [delivery] = consumer.receive(timeout=5)
            assert delivery.attempt == attempt
            delivery.nack()
        [delivery] = consumer.receive(timeout=5)
        delivery.nack()  # the third of three
        assert consumer.receive(timeout=0.1) == []
    with broker.consumer("payments-dead", subscription="dead") as dead:
        [delivery] = dead.receive(timeout=5)
        assert delivery.dead_reason == "attempt 3 of 3 failed"
        assert not delivery.headers


def test_a_nack_keeps_its_delay(broker):
    send(broker, b"x")
    with broker.consumer("payments", subscription="ledger") as consumer:
        [delivery] = consumer.receive(timeout=5)
        began = time.monotonic()
        delivery.nack(delay=0.3)
        [delivery] = consumer.receive(timeout=5)
        assert time.monotonic() - began >= 0.3


def test_settling_twice_and_after_close_says_so(broker):
    send(broker, b"x", b"y")
    consumer = broker.consumer("payments", subscription="ledger")
    first, second = _two(consumer)
    first.ack()
    for settle in (first.ack, first.nack, first.reject):
        with pytest.raises(brokerkit.AlreadySettled):
            settle()
    report = consumer.close()
    assert report.given_back == 1
    with pytest.raises(brokerkit.Closed):
        second.ack()
    with pytest.raises(brokerkit.Closed):
        consumer.receive()
    assert broker.depth("payments", "ledger") == 1


def _two(consumer):
    taken = consumer.receive(timeout=5)
    while len(taken) < 2:
        taken += consumer.receive(timeout=5)
    return taken


def test_at_most_once_acks_before_the_hand_over(broker):
    send(broker, b"x")
    consumer = broker.consumer("payments", subscription="ledger", guarantee="at_most_once")
    with consumer:
        [delivery] = consumer.receive(timeout=5)
        assert broker.depth("payments", "ledger") == 0
        delivery.ack()
        with pytest.raises(brokerkit.AlreadySettled, match="at most once"):
            delivery.nack()


def test_a_send_without_a_subscription_is_refused_by_name(broker):
    broker.declare("lonely")
    with broker.producer("lonely") as producer:
        with pytest.raises(brokerkit.SendRefused) as refused:
            producer.send(b"x").result(timeout=5)
        assert refused.value.cause == "unroutable"


def test_exactly_once_stores_one_id_once(broker):
    with broker.producer("payments", "exactly_once") as producer:
        first = producer.send(b"x", id="same").result(timeout=5)
        assert producer.send(b"x", id="same").result(timeout=5) == first
    assert broker.depth("payments", "ledger") == 1


def test_a_transaction_commits_all_or_nothing(broker):
    broker.declare("receipts", ["audit"])
    send(broker, b"1", b"2")
    with broker.transactions("payments", subscription="ledger", timeout=0.2) as transactions:
        with pytest.raises(ZeroDivisionError):
            with transactions.receive() as tx:
                tx.send("receipts", b"never")
                raise ZeroDivisionError
        assert broker.depth("receipts", "audit") == 0
        with transactions.receive() as tx:
            for delivery in tx.deliveries:
                tx.send("receipts", delivery.body)
    assert broker.depth("receipts", "audit") == 2
    assert broker.depth("payments", "ledger") == 0


def test_what_a_transaction_sends_has_the_id_it_returned_and_the_time_it_was_sent_at(broker):
    broker.declare("receipts", ["audit"])
    send(broker, b"1")
    before = time.time() * 1000
    with broker.transactions("payments", subscription="ledger", timeout=0.2) as transactions:
        with transactions.receive() as tx:
            sent = [tx.send("receipts", b"fresh"), tx.send("receipts", b"given", id="mine")]
    with broker.consumer("receipts", subscription="audit") as consumer:
        got = consumer.receive(2, timeout=1)
    assert [delivery.id for delivery in got] == sent
    assert sent[1] == "mine"
    assert all(before - 1 <= delivery.published_at <= time.time() * 1000 for delivery in got)


def test_a_poison_message_leaves_its_neighbours_alone(broker):
    send(broker, b"1", b"poison", b"3")
    seen = []
    policy = brokerkit.Retry(attempts=2)
    with broker.transactions("payments", subscription="ledger", timeout=0.1, on_error=policy) as transactions:
        for _ in range(20):
            tx = transactions.receive()
            if tx is None:
                continue
            with tx:
                for delivery in tx.deliveries:
                    assert delivery.body != b"poison"
                seen += [delivery.body for delivery in tx.deliveries]
    assert sorted(seen) == [b"1", b"3"]
    assert broker.depth("payments-dead", "dead") == 1


def test_a_transaction_has_nowhere_to_put_poison_without_dead_letters(broker):
    broker.declare("payments", ["plain"])
    send(broker, b"poison")
    policy = brokerkit.Retry(attempts=1)
    with broker.transactions("payments", subscription="plain", timeout=0.1, on_error=policy) as transactions:
        with transactions.receive():
            raise ZeroDivisionError
        with pytest.raises(brokerkit.errors.ConfigurationError, match="has no dead letters"):
            transactions.receive()
    assert broker.depth("payments", "plain") == 1


def test_a_consumer_may_choose_its_position(broker):
    send(broker, b"0", b"1", b"2")
    chosen = lambda positions: {0: positions[0]._replace(value=2)}  # noqa: E731
    with broker.consumer("payments", subscription="ledger", positions=chosen) as consumer:
        assert [delivery.body for delivery in consumer.receive(timeout=5)] == [b"2"]


def test_use_after_a_fork_raises_by_name(broker):
    producer = broker.producer("payments")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            producer.send(b"x")
        except brokerkit.Forked as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert b"before a fork" in os.read(read, 200)
    producer.close()


def test_a_full_producer_fails_or_waits_as_asked(broker):
    from brokerkit_memory import driver

    blocked = threading.Event()
    original = driver._Sender.send

    def slow(self, messages, delay=0.0):
        return original(self, messages, delay) if blocked.is_set() else 0

    driver._Sender.send = slow
    try:
        producer = broker.producer("payments", max_in_flight=2, when_full="fail", delivery_timeout=10)
        producer.send(b"1")
        producer.send(b"2")
        with pytest.raises(brokerkit.ProducerFull):
            producer.send(b"3")
        blocked.set()
        assert producer.flush(5) == 0
    finally:
        driver._Sender.send = original
        producer.close()
    assert broker.depth("payments", "ledger") == 2


def test_on_end_is_called_once_a_receipt(broker):
    ended = []
    with broker.producer("payments") as producer:
        receipts = producer.send_many([b"1", b"2"], on_end=ended.append)
        assert producer.flush(5) == 0
    assert sorted(map(id, ended)) == sorted(map(id, receipts))
    assert {receipt.state for receipt in receipts} == {"confirmed"}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda b: brokerkit.connect("nowhere"), "broker URL"),
        (lambda b: brokerkit.connect("ftp://x"), "no plugin serves ftp"),
        (lambda b: brokerkit.connect("memory://x?colour=red"), "unknown option 'colour'"),
        (lambda b: brokerkit.connect("memory://x?client.acks=1"), "client.acks"),
        (lambda b: brokerkit.connect("memory://host:99999"), "65535"),
        (lambda b: brokerkit.connect("memory://x?a=1&a=2"), "twice"),
        (lambda b: b.declare("no--pe"), "portable name"),
        (lambda b: b.declare("x"), "portable name"),
        (lambda b: b.declare("payments", "ledger"), "list of names"),
        (lambda b: b.declare("payments", ["ledger"], attempts=0), "attempts"),
        (lambda b: b.declare("payments", ["ledger"], attempts=7), "attempts is 3, asked for 7"),
        (lambda b: b.declare("payments", ["ledger"], start="yesterday"), "earliest"),
        (lambda b: b.producer("nope-at-all"), "declare it first"),
        (lambda b: b.producer("payments", "exactly-once"), "at_least_once"),
        (lambda b: b.consumer("payments", subscription="nope"), "declare it first"),
        (lambda b: b.consumer("payments", subscription="ledger", guarantee="exactly_once"), "transactions"),
        (lambda b: b.consumer(subscription="ledger"), "at least one topic"),
        (lambda b: b.consumer("payments", subscription="ledger", prefetch=0), "prefetch"),
        (lambda b: b.producer("payments").flush(-1), "not negative"),
        (lambda b: b.producer("payments").send("text"), "body must be bytes"),
        (lambda b: b.producer("payments").send(b"x", id=7), "id must be a str"),
        (lambda b: b.producer("payments").send(b"x", key="\ud800"), "surrogate"),
        (lambda b: b.producer("payments").send(b"x", headers={"n": 1}), "header 'n'"),
        (lambda b: b.producer("payments").send(b"x", headers={"brokerkit-id": "1"}), "reserved"),
        (lambda b: b.producer("payments").send(b"x", delay=-1), "negative"),
    ],
)
def test_bad_input_names_the_cause(broker, call, said):
    with pytest.raises(brokerkit.BrokerkitError, match=said):
        call(broker)


def test_use_after_close_says_so(broker):
    producer = broker.producer("payments")
    producer.close()
    with pytest.raises(brokerkit.Closed):
        producer.send(b"x")
    broker.close()
    with pytest.raises(brokerkit.Closed):
        broker.producer("payments")


def test_no_repr_shows_a_body_or_a_password(broker):
    secret = b"sesame"
    with broker.producer("payments") as producer:
        receipt = producer.send(secret, headers={"token": "sesame"})
        receipt.result(timeout=5)
    with broker.consumer("payments", subscription="ledger") as consumer:
        [delivery] = consumer.receive(timeout=5)
        shown = [repr(thing) for thing in (producer, receipt, receipt.message, delivery, delivery.message, consumer)]
    assert not [text for text in shown if "sesame" in text]
