"""`broker.transactions(store=…, checkpoint=True)`: the place in each partition is a row beside the effects."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

import brokerkit
from brokerkit import Retry
from brokerkit.broker import Broker
from brokerkit.errors import ConfigurationError, NotSupported, PositionLost
from brokerkit.local.fixtures import TestBroker
from brokerkit.once.transactions import StoreTransaction, StoreTransactions

from .conftest import connect, tables, within
from .relay import relay
from .test_transactions import charge, charges, work, work_in_savepoints

__all__ = ["charges"]
pytestmark = pytest.mark.integration


@pytest.fixture
def streams(kafka: TestBroker, events: list[Any]) -> Iterator[Broker]:
    with brokerkit.connect(kafka.url, on_event=events.append) as broker:
        yield broker


@pytest.fixture
def topic(kafka: TestBroker, streams: Broker) -> Iterator[str]:
    name = kafka.name("payments")
    streams.declare(name, ["ledger"], attempts=5, native={"partitions": 3})
    yield name
    assert within(30, lambda: _deleted(streams, name)), "its group still had members"


def _deleted(broker: Broker, topic: str) -> bool:
    """A member that was in a rebalance when it closed is gone when its session is."""
    try:
        broker.delete(topic)
    except NotSupported:
        return False
    return True


def send(broker: Broker, topic: str, *ids: str) -> None:
    with broker.producer(topic) as producer:
        for id in ids:
            producer.send(b"50", id=id, key=id)
        assert producer.flush(30) == 0


def opened(broker: Broker, topic: str, url: str, **options: Any) -> StoreTransactions:
    return broker.transactions(topic, subscription="ledger", store=url, checkpoint=True, **options)


def places(url: str) -> dict[str, int]:
    with closing(connect(url)) as db:
        return dict(db.execute("select lane, place from brokerkit_checkpoints").fetchall())


def ids(first: int, last: int) -> list[str]:
    return [f"evt-{number:04}" for number in range(first, last)]


def test_one_row_a_partition_and_none_a_message(streams, topic, url, charges):
    send(streams, topic, *ids(0, 300))
    with opened(streams, topic, url) as transactions:
        assert "its place in its partition" in transactions.claim.condition
        work(transactions, lambda: len(charges()) == 300)
        assert within(10, lambda: streams.depth(topic, "ledger") == 0)
    assert charges() == ids(0, 300)
    assert sum(places(url).values()) == 300
    assert set(places(url)) <= {"0", "1", "2"}
    with closing(connect(url)) as db:
        assert db.execute("select count(*) from brokerkit_inbox").fetchone()[0] == 0


def test_a_worker_that_never_acks_is_followed_by_one_that_begins_behind_it(streams, topic, url, charges):
    send(streams, topic, *ids(0, 200))
    with opened(streams, topic, url) as first:
        first._settle = lambda batch, failed: first._hand.clear()  # type: ignore[method-assign]
        work(first, lambda: len(charges()) == 200)
    assert streams.depth(topic, "ledger") == 200, "Kafka was told nothing"
    send(streams, topic, *ids(200, 220))
    received: list[str] = []
    with opened(streams, topic, url) as second:
        work(second, lambda: len(charges()) == 220, lambda tx, id: (received.append(id), charge(tx, id)))
    assert sorted(received) == ids(200, 220)
    assert charges() == ids(0, 220)


def test_a_commit_whose_answer_is_lost_is_known_by_the_place(streams, topic, postgresql, request, tmp_path):
    with tables(request, "postgresql", tmp_path) as url, relay(url) as wire:
        with closing(connect(url)) as db:
            db.execute("create table charges (id text)")
            db.commit()
        send(streams, topic, *ids(0, 60))
        states: list[str] = []
        with opened(streams, topic, wire.url, max_messages=10) as transactions:
            wire.swallow = 1

            def once_more() -> bool:
                transaction = transactions.receive(0.2)
                if transaction is not None:
                    with transaction as tx:
                        for delivery in tx.deliveries:
                            charge(tx, delivery.id)
                    states.append(transaction.state)
                return streams.depth(topic, "ledger") == 0

            assert within(40, once_more)
        assert wire.swallowed == 1
        assert states.count("unknown") == 1
        with closing(connect(url)) as db:
            assert sorted(row[0] for row in db.execute("select id from charges").fetchall()) == ids(0, 60)


def test_poison_is_found_by_halves_and_buried_before_the_place_moves_over_it(streams, topic, url, charges):
    send(streams, topic, *ids(0, 40), "poison", *ids(40, 60))

    def each(tx: Any, id: str) -> None:
        charge(tx, id)
        if id == "poison":
            raise KeyError("poison")

    with opened(streams, topic, url, on_error=Retry(attempts=2)) as transactions:
        work(transactions, lambda: len(charges()) == 60 and streams.depth(topic, "ledger") == 0, each)
    assert charges() == ids(0, 60)
    with streams.consumer(f"{topic}-dead", subscription="dead") as dead:
        (letter,) = dead.receive(10, timeout=20)
        assert letter.id == "poison"
    streams.delete(f"{topic}-dead")


def test_in_savepoints_too_nothing_is_passed_over(streams, topic, url, charges):
    send(streams, topic, *ids(0, 30))
    failures = iter([True, True])

    def each(tx: StoreTransaction, id: str) -> None:
        charge(tx, id)
        if id == "evt-0007" and next(failures, False):
            raise KeyError("passes")

    with opened(streams, topic, url, on_error=Retry(attempts=5)) as transactions:
        work_in_savepoints(transactions, lambda: len(charges()) == 30, each)
    assert charges() == ids(0, 30)


def test_two_workers_and_a_rebalance_charge_each_message_once(streams, kafka, topic, url, charges):
    send(streams, topic, *ids(0, 400))
    with opened(streams, topic, url, max_messages=20) as first:
        work(first, lambda: len(charges()) >= 40)
        with brokerkit.connect(kafka.url) as other, opened(other, topic, url, max_messages=20) as second:
            deadline = time.monotonic() + 60
            while len(charges()) < 400 and time.monotonic() < deadline:
                for worker in (first, second):
                    transaction = worker.receive(0.1)
                    if transaction is not None:
                        with transaction as tx:
                            for delivery in tx.deliveries:
                                charge(tx, delivery.id)
    assert charges() == ids(0, 400)


def test_a_topic_made_anew_begins_anew(streams, topic, url, charges):
    send(streams, topic, *ids(0, 50))
    with opened(streams, topic, url) as transactions:
        work(transactions, lambda: len(charges()) == 50)
    streams.delete(topic)
    assert within(20, lambda: _declared(streams, topic))
    send(streams, topic, *ids(50, 60))
    with opened(streams, topic, url) as transactions:
        work(transactions, lambda: len(charges()) == 60)
    assert sum(places(url).values()) == 10


def _declared(broker: Broker, topic: str) -> bool:
    try:
        broker.declare(topic, ["ledger"], native={"partitions": 3})
    except brokerkit.errors.BrokerkitError:
        return False
    return True


def test_a_checkpoint_that_was_set_back_is_told_and_then_followed(streams, topic, url, charges):
    send(streams, topic, *ids(0, 30))
    with opened(streams, topic, url) as transactions:
        work(transactions, lambda: len(charges()) == 30)
        with closing(connect(url)) as db:
            db.execute("update brokerkit_checkpoints set place = 0")
            db.execute("delete from charges")
            db.commit()
        send(streams, topic, *ids(30, 60))
        with pytest.raises(PositionLost, match=r"somebody set it back\. Start the consumer again"):
            work(transactions, lambda: False)
    with opened(streams, topic, url) as transactions:
        work(transactions, lambda: len(charges()) == 60)
    assert charges() == ids(0, 60)


def test_where_there_is_no_place_to_keep_it_says_so(streams, kafka, url, queue, broker):
    with pytest.raises(ConfigurationError, match="pass store="):
        broker.transactions("payments", subscription="ledger", checkpoint=True)
    with pytest.raises(NotSupported, match="in order, to one consumer at a time"):
        broker.transactions("payments", subscription="ledger", store=url, checkpoint=True)
    with (
        brokerkit.connect("sqs://local:local@127.0.0.1:1/us-east-1") as sqs,
        pytest.raises(NotSupported, match="no places to keep"),
    ):
        sqs.transactions("payments", subscription="ledger", store=url, checkpoint=True)
    apart = kafka.name("apart")
    streams.declare(apart, ["ledger"], retry="topic")
    with pytest.raises(NotSupported, match="in order, to one consumer at a time"):
        opened(streams, apart, url)
    streams.delete(apart)
