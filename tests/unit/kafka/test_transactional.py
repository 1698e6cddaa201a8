"""The three kinds of errors of a transactional producer, and when another one takes its place. No broker."""

from __future__ import annotations

import time
from typing import Any

import pytest
from brokerkit_kafka import transactional
from brokerkit_kafka.settings import Config, KafkaSettings
from brokerkit_kafka.transactional import TransactionalProducer
from brokerkit_kafka.transactor import _generation
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from brokerkit.errors import ConnectionLost, LeaseLost, NotFound, NotSupported, SendRefused
from brokerkit.message import Message
from brokerkit.url import parse

CONFIG = {"transactional.id": "group--a", "transaction.timeout.ms": 60_000}
OFFSETS = [TopicPartition("in", 0, 7)]


def error(code: int = KafkaError._STATE, *, retry: bool = False, abort: bool = False, fatal: bool = False) -> Any:
    return KafkaException(KafkaError(code, "scripted", fatal, retry, abort))


class Fake:
    """A client that raises what it is told to, call by call, and writes down what it was asked."""

    made: list[Fake]
    fail: dict[str, list[Any]]

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.calls: list[str] = []
        self.offsets: list[Any] = []
        self.full = 0
        Fake.made.append(self)

    def _do(self, name: str) -> None:
        self.calls.append(name)
        errors = Fake.fail.get(name)
        if errors and (failed := errors.pop(0)) is not None:
            raise failed

    def init_transactions(self, timeout: float) -> None:
        self._do("init")

    def begin_transaction(self) -> None:
        self._do("begin")

    def produce(self, *args: Any, **kwargs: Any) -> None:
        self._do("produce")

    def send_offsets_to_transaction(self, offsets: Any, group: object, timeout: float) -> None:
        self.offsets.append((offsets, group))
        self._do("offsets")

    def commit_transaction(self, timeout: float) -> None:
        self._do("commit")

    def abort_transaction(self, timeout: float) -> None:
        self._do("abort")

    def poll(self, timeout: float) -> None:
        self._do("poll")

    def flush(self, timeout: float) -> int:
        return 0

    def purge(self, blocking: bool) -> None:
        self._do("purge")

    def trouble(self, text: str) -> None:
        self.config["error_cb"](KafkaError(KafkaError._TRANSPORT, text))


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> TransactionalProducer:
    Fake.made, Fake.fail = [], {}
    monkeypatch.setattr(transactional, "Producer", Fake)
    made = TransactionalProducer(CONFIG, lambda topic: None, 5.0)
    made.begin(5.0)
    return made


def test_a_transaction_begins_takes_offsets_and_is_committed(producer: TransactionalProducer) -> None:
    producer.send("out", Message(b"x"))
    producer.commit(OFFSETS, b"group")
    assert [call for call in Fake.made[0].calls if call != "poll"] == ["init", "begin", "produce", "offsets", "commit"]
    producer.begin(5.0)
    assert len(Fake.made) == 1


@pytest.mark.parametrize("call", ["offsets", "commit"])
def test_a_producer_that_may_have_asked_twice_is_replaced_before_the_next_transaction(
    producer: TransactionalProducer, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    do = Fake._do

    def late(self: Fake, name: str) -> None:
        if name == call:
            time.sleep(transactional.SLOW + 0.01)  # as long as the client pauses before it asks again
        do(self, name)

    monkeypatch.setattr(Fake, "_do", late)
    producer.commit(OFFSETS, b"group")
    assert len(Fake.made) == 1
    producer.begin(5.0)
    assert len(Fake.made) == 2


def test_the_client_waits_before_it_asks_again() -> None:
    config = Config(parse("kafka://localhost?client.retry.backoff.ms=1", {})[1], KafkaSettings())
    assert config.transactional("group--a")["retry.backoff.ms"] * 0.8 == transactional.SLOW * 1000


@pytest.mark.parametrize("call", ["init", "offsets", "commit"])
def test_a_retriable_error_is_the_same_call_again(producer: TransactionalProducer, call: str) -> None:
    Fake.fail = {call: [error(retry=True), error(retry=True)]}
    if call == "init":
        TransactionalProducer(CONFIG, lambda topic: None, 5.0)
    else:
        producer.commit(OFFSETS, b"group")
    assert Fake.made[-1].calls.count(call) == 3
    assert len({id(group) for _, group in Fake.made[-1].offsets}) <= 1


def test_offsets_that_must_be_aborted_are_aborted_and_the_producer_goes_on(producer: TransactionalProducer) -> None:
    Fake.fail = {"offsets": [error(KafkaError.ILLEGAL_GENERATION, abort=True)]}
    with pytest.raises(LeaseLost, match="not taken"):
        producer.commit(OFFSETS, b"group")
    assert not producer.asked
    producer.abort(5.0)
    producer.begin(5.0)
    assert len(Fake.made) == 1
    assert Fake.made[0].calls.count("abort") == 1


def test_a_fenced_producer_is_followed_by_another_under_the_same_id(producer: TransactionalProducer) -> None:
    Fake.fail = {"offsets": [error(KafkaError._FENCED, fatal=True)]}
    with pytest.raises(LeaseLost):
        producer.commit(OFFSETS, b"group")
    producer.abort(5.0)
    assert [fake.config["transactional.id"] for fake in Fake.made] == ["group--a"] * 2
    assert "abort" not in Fake.made[0].calls
    assert Fake.made[1].calls[0] == "init"


@pytest.mark.parametrize("code", [KafkaError._FENCED, KafkaError._TIMED_OUT])
def test_after_a_commit_of_unknown_end_another_producer_asks(producer: TransactionalProducer, code: int) -> None:
    Fake.fail = {"commit": [error(code)]}
    with pytest.raises(ConnectionLost, match="cannot be told"):
        producer.commit(OFFSETS, b"group")
    assert producer.asked
    producer.abort(5.0)
    assert len(Fake.made) == 2


def test_a_commit_that_must_be_aborted_did_not_happen_and_the_producer_is_replaced(
    producer: TransactionalProducer,
) -> None:
    Fake.fail = {"commit": [error(abort=True)]}
    with pytest.raises(LeaseLost, match="not committed"):
        producer.commit(OFFSETS, b"group")
    producer.abort(5.0)
    assert len(Fake.made) == 2


def test_a_call_that_never_returns_is_left_behind(
    producer: TransactionalProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    never = threading.Event()
    monkeypatch.setattr(transactional, "_ANSWER", 0.05)
    monkeypatch.setattr(Fake, "commit_transaction", lambda self, timeout: never.wait(30))
    with pytest.raises(ConnectionLost, match="has not answered"):
        producer.commit(OFFSETS, b"group")
    never.set()
    producer.abort(5.0)
    assert len(Fake.made) == 2


def test_an_abort_that_fails_brings_another_producer(producer: TransactionalProducer) -> None:
    Fake.fail = {"abort": [error(KafkaError.INVALID_TXN_STATE, fatal=True)]}
    producer.abort(5.0)
    assert len(Fake.made) == 2


def test_a_connection_that_failed_ends_the_transaction_before_its_commit(producer: TransactionalProducer) -> None:
    Fake.made[0].trouble("Disconnected (after 3ms in state UP)")
    with pytest.raises(LeaseLost, match="connection failed"):
        producer.commit(OFFSETS, b"group")
    producer.abort(5.0)
    assert len(Fake.made) == 2


def test_a_node_that_stays_down_does_not(producer: TransactionalProducer) -> None:
    Fake.made[0].trouble("Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)")
    producer.commit(OFFSETS, b"group")
    producer.begin(5.0)
    assert len(Fake.made) == 1


def test_trouble_after_a_commit_brings_another_producer_for_the_next(producer: TransactionalProducer) -> None:
    producer.commit(OFFSETS, b"group")
    Fake.made[0].trouble("Disconnected (after 3ms in state UP)")
    producer.begin(5.0)
    assert len(Fake.made) == 2


def test_a_message_that_can_never_be_stored_is_told_as_such(producer: TransactionalProducer) -> None:
    Fake.fail = {"commit": [error(abort=True)]}
    Fake.made[0].config["on_delivery"](KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), None)
    with pytest.raises(SendRefused) as refused:
        producer.commit(OFFSETS, b"group")
    assert refused.value.cause == "too_large"
    Fake.fail = {"produce": [error(KafkaError.MSG_SIZE_TOO_LARGE)]}
    with pytest.raises(SendRefused):
        producer.send("out", Message(b"x"))


def test_a_full_queue_is_waited_for(producer: TransactionalProducer) -> None:
    Fake.fail = {"produce": [BufferError(), BufferError()]}
    producer.send("out", Message(b"x"))
    assert Fake.made[0].calls.count("produce") == 3


def test_what_is_stored_is_let_go_while_the_transaction_goes_on(producer: TransactionalProducer) -> None:
    polls = Fake.made[0].calls.count("poll")
    for _ in range(1000):
        producer.send("out", Message(b"x"))
    assert Fake.made[0].calls.count("poll") - polls == 1000 // transactional._SERVE_EACH


def test_a_topic_is_looked_up_once_and_again_after_an_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    Fake.made, Fake.fail = [], {}
    monkeypatch.setattr(transactional, "Producer", Fake)
    asked: list[str] = []
    made = TransactionalProducer(CONFIG, asked.append, 5.0)
    made.begin(5.0)
    for _ in range(3):
        made.send("out", Message(b"x"))
    made.abort(5.0)
    made.begin(5.0)
    made.send("out", Message(b"x"))
    assert asked == ["out", "out"]

    def missing(topic: str) -> None:
        raise NotFound(topic)

    with pytest.raises(NotFound):
        TransactionalProducer(CONFIG, missing, 5.0).send("out", Message(b"x"))


def test_the_generation_is_read_from_the_clients_own_form() -> None:
    from confluent_kafka import Consumer

    consumer = Consumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": 0})
    assert _generation(consumer.consumer_group_metadata()) == -1
    consumer.close()
    with pytest.raises(NotSupported):
        _generation(b"something else")
