"""Consume, transform, produce on a real node: all of a transaction or nothing, once, whatever happens in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import Consumer as RawConsumer
from confluent_kafka import KafkaError, TopicPartition

import brokerkit
from brokerkit import errors

pytestmark = pytest.mark.integration

Count = Counter[bytes]


def servers(url: str) -> str:
    return url.removeprefix("kafka://").partition("?")[0]


def fill(broker: brokerkit.Broker, topic: str, count: int, first: int = 0) -> set[bytes]:
    bodies = {b"%d" % number for number in range(first, first + count)}
    with broker.producer(topic, guarantee="exactly_once") as producer:
        receipts = [producer.send(body, key=f"key-{int(body) % 50}") for body in sorted(bodies)]
        assert producer.flush(30) == 0
    assert {receipt.state for receipt in receipts} == {"confirmed"}
    return bodies


def stored(url: str, topic: str, *, committed: bool = True) -> Count:
    """Every message of the topic, by a client of its own that reads to the end of each partition. Also where it reads
    what is committed: a commit is answered before its markers are in the partitions, and until then it ends there."""
    found: Count = Counter()
    level = "read_committed" if committed else "read_uncommitted"
    with raw_reader(url, "read_uncommitted") as asked, raw_reader(url, level) as raw:
        partitions = raw.list_topics(topic, timeout=10).topics[topic].partitions
        left = {n: asked.get_watermark_offsets(TopicPartition(topic, n), timeout=10)[1] for n in partitions}
        raw.assign([TopicPartition(topic, number, 0) for number in partitions])
        deadline = time.monotonic() + 30
        while left:
            assert time.monotonic() < deadline, "the topic was not read to its end"
            message = raw.poll(0.5)
            if message is None:
                continue
            if message.error() is None:
                found[message.value()] += 1
            elif message.error().code() == KafkaError._PARTITION_EOF and message.offset() >= left.get(
                message.partition(), 0
            ):
                left.pop(message.partition(), None)
    return found


@contextmanager
def raw_reader(url: str, level: str) -> Iterator[RawConsumer]:
    settings = {"bootstrap.servers": servers(url), "group.id": "raw", "isolation.level": level}
    raw = RawConsumer({**settings, "enable.partition.eof": True, "enable.auto.commit": False})
    try:
        yield raw
    finally:
        raw.close()


def until(done: Callable[[], object], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def out(broker: brokerkit.Broker, topic: str) -> str:
    broker.declare(topic, ["copy"], attempts=3)
    broker.declare(f"{topic}-out", ["read"])
    return f"{topic}-out"


def copy(transactions: brokerkit.Transactions, out: str, enough: Callable[[], bool], timeout: float = 60.0) -> int:
    """Copies until it is enough; how many transactions that took."""
    deadline = time.monotonic() + timeout
    committed = 0
    while not enough():
        assert time.monotonic() < deadline, "not enough was copied in time"
        tx = transactions.receive(0.2)
        if tx is None:
            continue
        with tx:
            for delivery in tx.deliveries:
                tx.send(out, delivery.body, key=delivery.key)
        committed += tx.state == "committed"
    return committed


def test_what_a_transaction_takes_and_sends_is_committed_together(broker, url, topic, out):
    bodies = fill(broker, topic, 50)
    with broker.transactions(topic, subscription="copy", instance="a") as transactions:
        seen: Count = Counter()
        while len(seen) < 50:
            tx = transactions.receive(60)
            assert tx is not None
            with tx:
                for delivery in tx.deliveries:
                    seen[delivery.body] += 1
                    tx.send(out, delivery.body, headers={"from": delivery.id}, key=delivery.key)
                assert broker.depth(topic, "copy") >= len(tx.deliveries)
            assert tx.state == "committed"
    assert stored(url, out) == seen == Counter(bodies)
    assert broker.depth(topic, "copy") == 0


def test_what_a_transaction_sends_has_the_id_it_returned_and_the_time_it_was_sent_at(broker, topic, out):
    fill(broker, topic, 1)
    before = time.time() * 1000
    with broker.transactions(topic, subscription="copy", instance="a") as transactions:
        with transactions.receive(20.0) as tx:
            sent = [tx.send(out, b"fresh"), tx.send(out, b"given", id="mine")]
    assert sent[1] == "mine"
    with broker.consumer(out, subscription="read") as consumer:
        got = consumer.receive(2, 20.0)
        got += consumer.receive(2 - len(got), 20.0) if len(got) < 2 else []
        assert sorted(delivery.id for delivery in got) == sorted(sent)
        assert all(before - 1 <= delivery.published_at <= time.time() * 1000 for delivery in got)


def test_an_exception_aborts_all_of_it_and_the_messages_come_again_in_order(broker, url, topic, out):
    fill(broker, topic, 20)
    with broker.transactions(topic, subscription="copy", instance="a") as transactions:
        tx = transactions.receive(20.0)
        with pytest.raises(ZeroDivisionError), tx:
            first = [delivery.position for delivery in tx.deliveries]
            tx.send(out, b"never")
            raise ZeroDivisionError
        assert tx.state == "aborted"
        again = {}
        while set(first) - set(again):
            with transactions.receive(20.0) as tx:
                for delivery in tx.deliveries:
                    last = again.setdefault((delivery.position.lane,), -1)
                    assert delivery.position.value > last
                    again[delivery.position.lane,] = delivery.position.value
                    again[delivery.position] = 1
    assert stored(url, out) == {}


def test_what_was_aborted_is_in_the_log_and_invisible(broker, url, topic, out):
    fill(broker, topic, 5)
    with broker.transactions(topic, subscription="copy", instance="a") as transactions:
        with pytest.raises(RuntimeError), transactions.receive(20.0) as tx:
            for delivery in tx.deliveries:
                tx.send(out, delivery.body)
            until(lambda: stored(url, out, committed=False))
            raise RuntimeError
        assert stored(url, out) == {}
        assert stored(url, out, committed=False)


def test_a_transaction_goes_on_taking_in_until_its_time_is_over(broker, url, topic, out):
    bodies = fill(broker, topic, 3000)
    with broker.transactions(
        topic, subscription="copy", instance="a", max_messages=10_000, max_seconds=1.0
    ) as transactions:
        seen = 0

        def enough() -> bool:
            return seen == 3000

        count = 0
        while not enough():
            tx = transactions.receive(5.0)
            assert tx is not None
            with tx:
                for delivery in tx.deliveries:
                    tx.send(out, delivery.body)
                    seen += 1
            count += 1
        assert count < 6, "a batch of the client's is not a transaction"
    assert stored(url, out) == Counter(bodies)


def test_count_and_bytes_bound_a_transaction(broker, topic, out):
    fill(broker, topic, 1000)
    with broker.transactions(
        topic, subscription="copy", instance="a", max_messages=100, max_seconds=5.0
    ) as transactions:
        sizes = []
        while sum(sizes) < 300:
            with transactions.receive(20.0) as tx:
                sizes.append(len(list(tx.deliveries)))
        assert max(sizes) == 100
    with broker.transactions(
        topic, subscription="copy", instance="a", max_messages=10_000, max_bytes=100, max_seconds=5.0
    ) as transactions:
        with transactions.receive(20.0) as tx:
            assert len(list(tx.deliveries)) <= 500, "what one call of the client brings is not divided"


def test_a_poison_message_goes_to_the_dead_letters_within_a_transaction(broker, url, topic, out):
    bodies = fill(broker, topic, 40)
    bad = b"17"
    policy = brokerkit.Retry(attempts=2)
    events = []
    with (
        brokerkit.connect(url, on_event=events.append) as other,
        other.transactions(topic, subscription="copy", instance="a", on_error=policy) as transactions,
    ):
        deadline = time.monotonic() + 60
        while broker.depth(topic, "copy"):
            assert time.monotonic() < deadline
            tx = transactions.receive(0.2)
            if tx is None:
                continue
            with tx:
                for delivery in tx.deliveries:
                    tx.send(out, delivery.body)
                    assert delivery.body != bad
    assert stored(url, out) == Counter(bodies - {bad})
    with broker.consumer(f"{topic}-dead", subscription="dead") as coroner:
        [dead] = coroner.receive(10, timeout=20.0)
        assert (dead.body, dead.dead_reason) == (bad, "AssertionError in 2 transactions")
        dead.ack()
    assert [event.kind for event in events if event.kind == "dead_lettered"] == ["dead_lettered"]


def test_a_message_that_is_never_stored_is_the_users_to_know(broker, topic, out):
    fill(broker, topic, 3)
    with broker.transactions(topic, subscription="copy", instance="a") as transactions:
        with pytest.raises(errors.SendRefused) as refused, transactions.receive(20.0) as tx:
            tx.send(out, b"x" * 2_000_000)
        assert refused.value.cause == "too_large"
        assert tx.state == "aborted"
        with pytest.raises(errors.NotFound, match="declare it first"), transactions.receive(20.0) as tx:
            tx.send("nowhere", b"x")
        broker.declare("small" + topic, [], native={"config": {"max.message.bytes": "1000"}})
        with pytest.raises(errors.SendRefused) as refused, transactions.receive(20.0) as tx:
            tx.send("small" + topic, b"x" * 10_000)
        assert refused.value.cause == "too_large"
        with transactions.receive(20.0) as tx:
            tx.send(out, b"fits")
        assert tx.state == "committed"


def test_several_topics_and_a_third_and_fourth_to_send_to(broker, url, topic):
    ins = [f"{topic}-a", f"{topic}-b"]
    outs = [f"{topic}-c", f"{topic}-d"]
    for name in (*ins, *outs):
        broker.declare(name, ["copy"], start="earliest")
    # One group reads both: it is named after the first topic.
    brokerkit.connect(url)
    bodies = fill(broker, ins[0], 30) | fill(broker, ins[1], 30, first=1000)
    declared_for_group(url, f"{ins[0]}--copy", ins[1])
    seen: Count = Counter()
    with broker.transactions(*ins, subscription="copy", instance="a") as transactions:
        deadline = time.monotonic() + 30
        while len(seen) < 60:
            assert time.monotonic() < deadline
            tx = transactions.receive(1.0)
            if tx is None:
                continue
            with tx:
                for delivery in tx.deliveries:
                    seen[delivery.body] += 1
                    for out in outs:
                        tx.send(out, delivery.body)
    assert stored(url, outs[0]) == stored(url, outs[1]) == seen == Counter(bodies)


def declared_for_group(url: str, group: str, topic: str) -> None:
    raw = RawConsumer({"bootstrap.servers": servers(url), "group.id": group})
    raw.commit(offsets=[TopicPartition(topic, number, 0) for number in range(4)], asynchronous=False)
    raw.close()


# ---------------------------------------------------------------- several owners


def test_a_successor_of_the_same_instance_fences_its_predecessor(broker, url, topic, out):
    bodies = fill(broker, topic, 10)
    with broker.transactions(topic, subscription="copy", instance="a") as old:
        tx = old.receive(20.0)
        with tx:
            for delivery in tx.deliveries:
                tx.send(out, delivery.body)
            with broker.transactions(topic, subscription="copy", instance="a"):
                # The successor has ended the open transaction; what the zombie commits is nothing.
                pass
        assert tx.state == "aborted"
        assert stored(url, out) == {}
        copy(old, out, lambda: broker.depth(topic, "copy") == 0)
    assert stored(url, out) == Counter(bodies)


def test_a_rebalance_inside_a_transaction_ends_it(broker, url, topic, out):
    bodies = fill(broker, topic, 1000)
    with broker.transactions(topic, subscription="copy", instance="a", max_messages=100_000, max_seconds=20.0) as first:
        joined = threading.Event()
        ends: list[str] = []

        def join() -> None:
            with broker.transactions(topic, subscription="copy", instance="b", timeout=0.2) as second:
                joined.set()
                copy(second, out, lambda: len(ends) > 0 and broker.depth(topic, "copy") == 0)

        other = threading.Thread(target=join)
        tx = first.receive(20.0)
        other.start()
        with tx:
            for delivery in tx.deliveries:
                tx.send(out, delivery.body)
                joined.wait(20.0)
                time.sleep(0.02)
        ends.append(tx.state)
        assert tx.state == "aborted"
        copy(first, out, lambda: broker.depth(topic, "copy") == 0)
        other.join(60)
        assert not other.is_alive()
    assert stored(url, out) == Counter(bodies)


@pytest.mark.parametrize(
    "protocol", ["session_timeout=6", "session_timeout=6&assignor=range", "group_protocol=consumer"]
)
def test_workers_that_come_and_go_copy_everything_once(url, topic, protocol):
    with brokerkit.connect(f"{url.partition('?')[0]}?{protocol}") as broker:
        broker.declare(topic, ["copy"])
        broker.declare(f"{topic}-out", [])
        bodies = fill(broker, topic, 20_000)
        leave = [threading.Event() for _ in range(3)]

        def work(number: int) -> None:
            with broker.transactions(
                topic, subscription="copy", instance=f"w{number}", max_messages=200, timeout=0.2
            ) as transactions:
                copy(transactions, f"{topic}-out", leave[number].is_set, timeout=90)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        try:
            workers[0].start()
            until(lambda: broker.depth(topic, "copy") < 18_000)
            workers[1].start()
            until(lambda: broker.depth(topic, "copy") < 14_000)
            leave[0].set()
            workers[2].start()
            until(lambda: broker.depth(topic, "copy") == 0)
        finally:
            for event, worker in zip(leave, workers, strict=True):
                event.set()
                if worker.ident is not None:
                    worker.join(60)
        assert stored(url, f"{topic}-out") == Counter(bodies)


WORKER = """
import sys, brokerkit
url, topic, out, instance = sys.argv[1:]
with brokerkit.connect(url) as broker:
    with broker.transactions(topic, subscription="copy", instance=instance, max_messages=50) as transactions:
        for tx in transactions:
            with tx:
                for delivery in tx.deliveries:
                    tx.send(out, delivery.body)
            print(tx.state, flush=True)
"""


@pytest.fixture
def worker(url: str, topic: str, out: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(instance: str, **settings: object) -> subprocess.Popen[str]:
        more = "".join(f"&{name}={value}" for name, value in settings.items())
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, url + more, topic, out, instance],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_worker_that_is_killed_again_and_again_copies_everything_once(broker, url, topic, out, worker):
    bodies = fill(broker, topic, 3000)
    for _ in range(4):
        process = worker("a")
        assert process.stdout.readline() == "committed\n"
        os.kill(process.pid, signal.SIGKILL)
    worker("a")
    until(lambda: broker.depth(topic, "copy") == 0)
    assert stored(url, out) == Counter(bodies)


def test_a_worker_that_is_frozen_past_its_session_doubles_nothing(broker, url, topic, out, worker):
    bodies = fill(broker, topic, 500)
    frozen = worker("a")
    assert frozen.stdout.readline() == "committed\n"
    os.kill(frozen.pid, signal.SIGSTOP)
    bodies |= fill(broker, topic, 500, first=5000)
    worker("b")
    until(lambda: broker.depth(topic, "copy") == 0)
    os.kill(frozen.pid, signal.SIGCONT)
    bodies |= fill(broker, topic, 2000, first=10_000)
    until(lambda: broker.depth(topic, "copy") == 0)
    until(lambda: stored(url, out) == Counter(bodies), 20)


def test_a_transaction_that_is_open_for_too_long_is_aborted_and_runs_again(url, topic):
    with brokerkit.connect(url + "&transaction_timeout=2") as broker:
        broker.declare(topic, ["copy"])
        broker.declare(f"{topic}-out", [])
        bodies = fill(broker, topic, 5)
        with broker.transactions(topic, subscription="copy", instance="a") as transactions:
            tx = transactions.receive(20.0)
            with tx:
                for delivery in tx.deliveries:
                    tx.send(f"{topic}-out", delivery.body)
                time.sleep(5.0)
            assert tx.state == "aborted"
            assert stored(url, f"{topic}-out") == {}
            copy(transactions, f"{topic}-out", lambda: broker.depth(topic, "copy") == 0)
        assert stored(url, f"{topic}-out") == Counter(bodies)
