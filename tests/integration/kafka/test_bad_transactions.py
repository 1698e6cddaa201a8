"""What a user gets wrong with transactions, on every broker that has them: the cause, the cure, in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import brokerkit
from brokerkit import errors

ALL = ("kafka", "sqlite", "memory")


def opened(broker: brokerkit.Broker, topic: str, count: int = 1, **options: object) -> brokerkit.Transactions:
    """Transactions on a topic with so many messages."""
    broker.declare(topic, ["copy"])
    broker.declare(f"{topic}-out", ["read"])
    with broker.producer(topic) as producer:
        producer.send_many([b"%d" % number for number in range(count)])
        assert producer.flush(20) == 0
    return broker.transactions(topic, subscription="copy", instance="a", timeout=20.0, **options)


def inside(act: Callable[[brokerkit.Broker, str, brokerkit.Transactions, brokerkit.Transaction], object]) -> Act:
    """`act` in the block of an open transaction."""

    def run(broker: brokerkit.Broker, topic: str) -> None:
        with opened(broker, topic) as transactions:
            transaction = transactions.receive()
            assert transaction is not None
            with transaction:
                act(broker, topic, transactions, transaction)

    return run


def entered_twice(transaction: brokerkit.Transaction) -> None:
    with transaction:
        pass


def asked_while_one_waits(broker: brokerkit.Broker, topic: str) -> None:
    with opened(broker, topic) as transactions:
        transactions.receive()
        transactions.receive()


def sent_before_it_is_entered(broker: brokerkit.Broker, topic: str) -> None:
    with opened(broker, topic) as transactions:
        transactions.receive().send(f"{topic}-out", b"x")


def sent_after_its_end(broker: brokerkit.Broker, topic: str) -> None:
    with opened(broker, topic) as transactions:
        with transactions.receive() as transaction:
            pass
        transaction.send(f"{topic}-out", b"x")


def entered_after_its_end(broker: brokerkit.Broker, topic: str) -> None:
    with opened(broker, topic) as transactions:
        with transactions.receive() as transaction:
            pass
        entered_twice(transaction)


def asked_after_close(broker: brokerkit.Broker, topic: str) -> None:
    transactions = opened(broker, topic)
    transactions.close()
    transactions.receive()


def sent_after_close(broker: brokerkit.Broker, topic: str) -> None:
    transactions = opened(broker, topic)
    transaction = transactions.receive()
    transactions.close()
    transaction.send(f"{topic}-out", b"x")


def opened_after_close(broker: brokerkit.Broker, topic: str) -> None:
    broker.declare(topic, ["copy"])
    broker.close()
    broker.transactions(topic, subscription="copy")


def poison_without_dead_letters(broker: brokerkit.Broker, topic: str) -> None:
    with opened(broker, topic, on_error=brokerkit.Retry(attempts=1)) as transactions:
        for _ in range(3):
            transaction = transactions.receive(10.0)
            if transaction is not None:
                with transaction:
                    raise ZeroDivisionError


def with_options(**options: object) -> Act:
    return lambda broker, topic: opened(broker, topic, **options)


def too_long(broker: brokerkit.Broker, topic: str) -> None:
    opened(broker, topic, max_seconds=3600.0)


Act = Callable[[brokerkit.Broker, str], object]
Row = tuple[Act, type[Exception], str, tuple[str, ...]]
NESTED = "do not nest"
BAD: dict[str, Row] = {
    "the next one inside of one": (inside(lambda b, t, ts, tx: ts.receive()), errors.ConfigurationError, NESTED, ALL),
    "entered inside itself": (
        inside(lambda b, t, ts, tx: entered_twice(tx)),
        errors.ConfigurationError,
        NESTED,
        ALL,
    ),
    "the next one before this one": (asked_while_one_waits, errors.ConfigurationError, f"{NESTED}, leave it", ALL),
    "sent before it is entered": (sent_before_it_is_entered, errors.ConfigurationError, "inside `with", ALL),
    "sent after its end": (sent_after_its_end, errors.Closed, "ended .committed.: take the next", ALL),
    "entered after its end": (entered_after_its_end, errors.Closed, "ended .committed.: take the next", ALL),
    "asked for after close": (asked_after_close, errors.Closed, "closed", ALL),
    "sent after close": (sent_after_close, errors.Closed, "ended .aborted.: take the next", ALL),
    "opened after close": (opened_after_close, errors.Closed, "call brokerkit.connect", ALL),
    "a database handle": (inside(lambda b, t, ts, tx: tx.connection), errors.NotSupported, "pass store=", ALL),
    "a consumer of exactly once": (
        lambda b, t: (b.declare(t, ["copy"]), b.consumer(t, subscription="copy", guarantee="exactly_once")),
        errors.GuaranteeNotOffered,
        r"use broker\.transactions",
        ALL,
    ),
    "longer than the broker allows": (too_long, errors.ConfigurationError, "take fewer seconds", ("kafka", "sqlite")),
    "too large a message": (
        inside(lambda b, t, ts, tx: tx.send(f"{t}-out", b"x" * 20_000_000)),
        errors.SendRefused,
        "large|max_body_bytes is",
        ("kafka", "sqlite"),
    ),
    "a body of the wrong type": (
        inside(lambda b, t, ts, tx: tx.send(f"{t}-out", "text")),
        errors.ConfigurationError,
        "encode",
        ALL,
    ),
    "sent to a topic that is not there": (
        inside(lambda b, t, ts, tx: tx.send("nowhere", b"x")),
        errors.NotFound,
        "declare it",
        ALL,
    ),
    "opened on a topic that is not there": (
        lambda b, t: b.transactions(t, subscription="copy"),
        errors.NotFound,
        "declare (it|a topic)",
        ALL,
    ),
    "no topic": (lambda b, t: b.transactions(subscription="copy"), errors.ConfigurationError, "at least one", ALL),
    "room for nothing": (with_options(max_messages=0), errors.ConfigurationError, "max_messages must be", ALL),
    "a negative time": (with_options(max_seconds=-1.0), errors.ConfigurationError, "not negative", ALL),
    "an unknown end of errors": (with_options(on_error="ignore"), errors.ConfigurationError, r"brokerkit\.Retry", ALL),
    "a retry of nothing": (
        with_options(on_error=brokerkit.Retry(attempts=0)),
        errors.ConfigurationError,
        "attempts must be",
        ALL,
    ),
    "poison, and no dead letters": (
        poison_without_dead_letters,
        errors.ConfigurationError,
        "attempts= or dead_letter=",
        ("kafka", "memory"),
    ),
}
ROWS = [(name, scheme) for name, row in BAD.items() for scheme in row[3]]


@pytest.fixture
def mistaken(scheme: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[brokerkit.Broker]:
    """The broker to be used wrongly."""
    urls = {"sqlite": lambda: f"sqlite:///{tmp_path}/file.db", "memory": lambda: "memory://"}
    url = urls[scheme]() if scheme in urls else request.getfixturevalue("url")
    with brokerkit.connect(url) as broker:
        yield broker


@pytest.mark.integration
@pytest.mark.parametrize(("name", "scheme"), ROWS)
def test_a_mistake_is_told_with_its_cause_and_its_cure(
    mistaken: brokerkit.Broker, topic: str, name: str, scheme: str
) -> None:
    act, error, words, _ = BAD[name]
    began = time.monotonic()
    with pytest.raises(error, match=f"(?i){words}") as caught:
        act(mistaken, topic)
    assert time.monotonic() - began < 40, f"{caught.value} took too long"


@pytest.mark.parametrize("weak", ["client.isolation.level=read_uncommitted", "client.enable.idempotence=false"])
def test_settings_that_void_the_promise_leave_no_transactions(weak: str) -> None:
    with brokerkit.connect(f"kafka://localhost?{weak}") as broker:
        assert not broker.capabilities.transactions
        with pytest.raises(errors.NotSupported, match="as configured"):
            broker.transactions("topic", subscription="copy")
        with pytest.raises(errors.GuaranteeNotOffered, match="as configured"):
            broker.claims(consumer="exactly_once")
