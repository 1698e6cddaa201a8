"""A producer with a transactional id: its three kinds of errors, and its successor when its state is in doubt.

librdkafka sorts errors of its transactional calls: *retriable*, the same call again; *requires abort*, nothing of the
transaction will be committed; anything else ends the producer, and another one with the same transactional id takes
its place, whose first call ends what was left open.

Until Kafka's clients bump the epoch with every transaction (KIP-890), a request that was held up in the network may
hit a later transaction of the same producer. librdkafka asks again by itself when a connection fails, and mostly tells
nobody. But it waits before it does: so a producer that had to wait that long for an answer, or saw an error, is
replaced before the next transaction.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as Native

from brokerkit.driver import Cause
from brokerkit.errors import ConfigurationError, ConnectionLost, LeaseLost, SendRefused
from brokerkit.message import Fields
from brokerkit_kafka.errors import ACCESS, NOT_STORED, made, translated
from brokerkit_kafka.outage import Forgotten
from brokerkit_kafka.posting import pack
from brokerkit_kafka.settings import RETRY_BACKOFF, log

SLOW = 0.8 * RETRY_BACKOFF
"""Seconds of a call after which it may have asked twice: the client's pause before it does, less its jitter."""
_SERVE_EACH = 100
"""Messages sent after which callbacks run: what is stored is held in memory until then."""
_ANSWER = 10.0
"""Seconds that the coordinator is given."""
_CONNECTING = "in state CONNECT)"
"""In the text of an error that no request can have been lost by: a node is down and stays so."""
_MISSING = Cause.TOPIC_MISSING


class TransactionalProducer:
    """Used by one thread; librdkafka's callbacks run inside its calls."""

    def __init__(self, config: dict[str, Any], exists: Callable[[str], object], timeout: float) -> None:
        """Waits until the predecessor's transaction is over. `exists` raises NotFound for a topic that is not there."""
        self.id: str = config["transactional.id"]
        self.longest: float = int(config["transaction.timeout.ms"]) / 1000
        self._config = config
        self._exists = exists
        self._topics: set[str] = set()
        self.asked = False
        """Whether a commit of this transaction may have reached the broker."""
        self._doubt = ""
        self._refused: tuple[KafkaError, Cause] | None = None
        self._unserved = 0
        self._began = time.monotonic()
        self._renew(timeout)

    def begin(self, timeout: float) -> None:
        self._serve(0)
        if self._doubt:
            self._renew(timeout)
        self.asked = False
        self._refused = None
        self._began = time.monotonic()
        if failed := _persist(self._producer.begin_transaction):
            self._doubt = failed.text
            raise ConnectionLost(f"beginning a transaction: {failed.text}")

    def send(self, topic: str, fields: Fields) -> None:
        if topic not in self._topics:
            self._exists(topic)
            self._topics.add(topic)
        body, id, key, headers, content_type, published_at, _ = fields
        packed = pack(id, content_type, headers)
        try:
            raw_key = None if key is None else key.encode("utf-8", "surrogateescape")
            # By place (partition, no callback of its own, timestamp, headers): by name it takes twice as long.
            self._produce(topic, body, raw_key, -1, None, None, published_at, packed)
        except BufferError:
            self._wait_for_room(topic, body, raw_key, published_at, packed)
        except KafkaException as error:
            raise self._not_taken(error.args[0]) from None
        except UnicodeEncodeError:
            raise SendRefused("an id or header is not valid UTF-8", Cause.INVALID) from None
        self._unserved += 1
        if self._unserved == _SERVE_EACH:
            self._unserved = 0
            self._serve(0)

    def commit(self, offsets: list[TopicPartition], group: object) -> None:
        """Raises LeaseLost or SendRefused when nothing happened, ConnectionLost when nobody can tell."""
        producer = self._producer
        self._serve(0)
        if self._doubt:
            raise LeaseLost(f"a connection failed during the transaction: {self._doubt}")
        take = partial(producer.send_offsets_to_transaction, offsets, group, _ANSWER)
        if offsets and (failed := self._within(take)):
            self._tell_refused()
            self._doubt = self._doubt or ("" if failed.abort else failed.text)
            raise LeaseLost(f"the transaction's offsets were not taken: {failed.text}")
        self.asked = True
        self._serve_all()
        failed = self._within(partial(producer.commit_transaction, _ANSWER))
        if failed is None:
            return
        if not failed.abort:
            self._doubt = failed.text
            raise ConnectionLost(f"it cannot be told whether the transaction was committed: {failed.text}")
        self._tell_refused()
        self._doubt = failed.text
        raise LeaseLost(f"the transaction was not committed: {failed.text}")

    def abort(self, timeout: float) -> None:
        """Afterwards nothing is open. Raises ConnectionLost when that cannot be had within `timeout` seconds."""
        self._topics.clear()  # what made it fail may be a topic that is gone
        self._serve(0)
        deadline = time.monotonic() + timeout
        if not self._doubt and (failed := self._within(partial(self._producer.abort_transaction, _ANSWER))):
            self._doubt = failed.text
        if self._doubt:
            self._renew(max(1.0, deadline - time.monotonic()))

    def close(self, timeout: float) -> None:
        self._retire(self._producer)

    # ------------------------------------------------------------ errors

    def _within(self, call: Callable[[], object]) -> _Failure | None:
        """What came of it. librdkafka 2.16 ignores the timeout of a call whose coordinator goes away meanwhile, and
        waits for ever: then it is left behind in its thread, and its producer with it."""
        ends: list[_Failure | None] = []
        thread = threading.Thread(target=lambda: ends.append(_persist(call)), name="brokerkit kafka txn", daemon=True)
        began = time.monotonic()
        thread.start()
        thread.join(2 * _ANSWER)
        if time.monotonic() - began > SLOW:
            self._doubt = self._doubt or "an answer took long: it may have been asked for twice"
        return ends[0] if ends else _Failure("its coordinator has not answered", False)

    def _wait_for_room(self, *fields: Any) -> None:
        topic, body, key, published_at, headers = fields
        while True:
            self._serve(0.05)
            try:
                self._produce(topic, body, key, -1, None, None, published_at, headers)
            except BufferError:
                if time.monotonic() > self._began + self.longest:
                    raise LeaseLost("the transaction's time was over before the broker took its messages") from None
            except KafkaException as error:
                raise self._not_taken(error.args[0]) from None
            else:
                return

    def _not_taken(self, error: KafkaError) -> Exception:
        cause = NOT_STORED.get(error.code())
        if cause is not None:
            return SendRefused(error.str(), cause)
        if not error.txn_requires_abort():
            self._doubt = error.str()
        return LeaseLost(f"the transaction is over: {error.str()}")

    def _tell_refused(self) -> None:
        self._serve(0)
        if self._refused is not None:
            error, cause = self._refused
            raise SendRefused(f"a message of the transaction was refused: {error.str()}", cause)

    def _on_delivery(self, error: KafkaError | None, _: Native) -> None:
        """What can never be stored is the user's to know; all else the commit tells."""
        cause = None if error is None else NOT_STORED.get(error.code())
        if error is not None and cause is not None and cause is not _MISSING:
            self._refused = (error, cause)

    def _serve(self, timeout: float) -> None:
        """Runs callbacks; an error that ends the producer is raised here instead of reaching its callback."""
        try:
            self._producer.poll(timeout)
        except KafkaException as error:
            self._doubt = error.args[0].str()

    def _serve_all(self) -> None:
        """Until all that was sent is stored, so that a commit waits for its own answer alone."""
        try:
            self._producer.flush(_ANSWER)
        except KafkaException as error:
            self._doubt = error.args[0].str()

    def _on_error(self, error: KafkaError) -> None:
        if _CONNECTING not in error.str():
            self._doubt = self._doubt or error.str()

    # ------------------------------------------------------------ successors

    def _renew(self, timeout: float) -> None:
        """A new producer under the same id: what the old one left open is committed or aborted, and it is fenced."""
        old: Producer | None = getattr(self, "_producer", None)
        forgotten = Forgotten()

        def statistics(text: str) -> None:
            if forgotten.seen(text):
                self._doubt = Forgotten.REASON

        callbacks = {"error_cb": self._on_error, "stats_cb": statistics, "on_delivery": self._on_delivery}
        self._producer = made(Producer, {**self._config, **callbacks})
        self._produce = self._producer.produce
        if old is not None:
            self._retire(old)
        self._doubt = "not begun"
        self._began = time.monotonic()
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._producer.init_transactions(max(0.1, deadline - time.monotonic()))
            except KafkaException as failed:
                failure: KafkaError = failed.args[0]
                if failure.retriable() and time.monotonic() < deadline:
                    continue
                self._serve(0)
                trouble = translated(failure, f"beginning transactions as {self.id!r}")
                known = failure.code() in ACCESS or isinstance(trouble, ConfigurationError)
                raise trouble if known else ConnectionLost(str(trouble)) from None
            else:
                self._doubt = ""
                return

    @staticmethod
    def _retire(producer: Producer) -> None:
        """Drops what it still holds, so that its end does not wait for a broker."""
        try:
            producer.purge(blocking=False)
            producer.poll(0)
        except KafkaException as error:
            log.debug("a producer that is given up: %s", error.args[0].str())


class _Failure(NamedTuple):
    """Why a call did not succeed; `abort`: nothing of the transaction will be committed."""

    text: str
    abort: bool


def _persist(call: Callable[[], object]) -> _Failure | None:
    """None when it is done; else what ended trying, at once or after a while."""
    give_up = time.monotonic() + _ANSWER
    while True:
        try:
            call()
        except KafkaException as failed:
            error: KafkaError = failed.args[0]
            abort = error.txn_requires_abort()
            if abort or not error.retriable() or time.monotonic() > give_up:
                return _Failure(error.str(), abort)
            time.sleep(0.02)
        else:
            return None
