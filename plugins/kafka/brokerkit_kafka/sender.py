"""One idempotent producer, and a thread that polls it."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Native

from brokerkit.driver import (
    Cause,
    Confirmed,
    Outcome,
    Outcomes,
    Refused,
    Sender,
    SenderEvents,
    Unknown,
)
from brokerkit.errors import ConfigurationError, ConnectionLost
from brokerkit.guarantees import Guarantee
from brokerkit.message import Headers, Message
from brokerkit_kafka.errors import NOT_STORED
from brokerkit_kafka.outage import Forgotten, Outage

BUSY = 0.002
"""Seconds between two polls by a thread that sends all the time: the polling thread then leaves it to that one,
since two threads that hand the interpreter to and fro for each report cost more than the reports."""
SETTLED = 0.02
"""Seconds after which a new producer has looked for a broker that gives it its id, and found none connected yet. If a
message is sent before that, it does not look again for 500 ms, unless metadata are asked for in between."""


class KafkaSender(Sender):
    """librdkafka retries and reconnects by itself until the delivery timeout; an unknown end is final under
    exactly_once, where another attempt could not be recognised. The thread `brokerkit kafka TOPIC` polls for
    delivery reports, and so does a `send` now and then; what one poll brought is passed on as one batch."""

    def __init__(
        self,
        config: dict[str, Any],
        topic: str,
        guarantee: Guarantee,
        outcomes: Outcomes,
        events: SenderEvents,
    ) -> None:
        self._topic = topic
        self._confirms = guarantee is not Guarantee.AT_MOST_ONCE
        self._again = guarantee is Guarantee.AT_LEAST_ONCE
        self._outcomes = outcomes
        self._events = events
        self._next = 0
        self._stored: deque[tuple[int, tuple[str, Any, Any]]] = deque()
        self._telling = threading.Lock()
        self._polled_at = 0.0
        self._failed: deque[Outcome] = deque()
        self._over: str | None = None
        self._ended = False
        self._closed = False
        self._outage = Outage(events)
        self._forgotten = Forgotten()
        callbacks = {"error_cb": self._outage.seen, "stats_cb": self._on_statistics}
        try:
            self._producer = Producer({**config, **callbacks})
        except KafkaException as error:
            raise ConfigurationError(f"client options: {error.args[0].str()}") from None
        self._produce: Any = self._producer.produce
        self._thread = threading.Thread(target=self._poll, name=f"brokerkit kafka {topic}", daemon=True)
        self._thread.start()

    def send(self, messages: Sequence[Message], delay: float = 0.0) -> int:
        if self._over is not None:
            raise ConnectionLost(self._over)
        taken = 0
        produce = self._produce
        for message in messages:
            body, id, key, headers, content_type, published_at, _ = message
            number = self._next
            packed: Any = [("brokerkit-id", id)]
            if headers or content_type is not None:
                pack(content_type, headers, packed)
            try:
                raw_key = None if key is None else key.encode("utf-8", "surrogateescape")
                # By place (partition, callback, its other name, timestamp, headers): by name it takes twice as long.
                produce(self._topic, body, raw_key, -1, partial(self._done, number), None, published_at, packed)
            except BufferError:
                break
            except KafkaException as error:
                if error.args[0].code() == KafkaError._FATAL:
                    self._end(error.args[0].str())
                    if not taken:
                        raise ConnectionLost(error.args[0].str()) from None
                    break
                self._failed.append(self._outcome(number, error.args[0]))
            except UnicodeEncodeError:
                self._failed.append(Refused(number, number, Cause.INVALID, "an id or header is not valid UTF-8"))
            self._next = number + 1
            taken += 1
        now = time.monotonic()
        if now - self._polled_at > BUSY:
            self._polled_at = now
            self._serve(0)
            self._tell()
        return taken

    def close(self, timeout: float) -> None:
        """Waits for delivery reports, then drops what has none: those end unknown."""
        deadline = time.monotonic() + timeout
        self._over = self._over or "the sender was closed"
        while len(self._producer) and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(0.005)
        self._closed = True
        self._thread.join(2.0)
        if len(self._producer):
            self._producer.purge(blocking=False)
        self._serve(0)
        give_up = time.monotonic() + 1.0
        while len(self._producer) and time.monotonic() < give_up:
            self._serve(0.05)
        self._tell()

    # ------------------------------------------------------------ the polling thread

    def _serve(self, wait: float) -> None:
        """Runs callbacks. A fatal error does not come to one: the client raises it, in whichever thread polls."""
        try:
            self._producer.poll(wait)
        except KafkaException as error:
            self._end(error.args[0].str())

    def _poll(self) -> None:
        if self._confirms:
            time.sleep(SETTLED)
            self._probe()
        while not self._closed:
            if time.monotonic() - self._polled_at < 3 * BUSY:
                time.sleep(BUSY)
                continue
            self._serve(0.1)
            if self._stored or self._failed:
                self._tell()
            elif self._outage.probe_due():
                self._probe()

    def _done(self, number: int, error: KafkaError | None, native: Native) -> None:
        if error is None:
            self._stored.append((number, (self._topic, native.partition(), native.offset())))
        else:
            self._failed.append(self._outcome(number, error))

    def _tell(self) -> None:
        with self._telling:
            stored = [self._stored.popleft() for _ in range(len(self._stored))]
            outcomes: list[Outcome] = [self._failed.popleft() for _ in range(len(self._failed))]
        if stored:
            self._outage.over()
            stored.sort(key=itemgetter(0))
            outcomes += _confirmed(stored)
        if not self._confirms:
            outcomes = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        if outcomes:
            self._outcomes(outcomes)

    def _outcome(self, number: int, error: KafkaError) -> Outcome:
        code = error.code()
        if code in NOT_STORED:
            return Refused(number, number, NOT_STORED[code], error.str())
        if code == KafkaError._MSG_TIMED_OUT and not self._confirms:  # written once, it would count as delivered
            return Refused(number, number, Cause.UNREACHABLE, "it could not be written in time")
        if code == KafkaError._MSG_TIMED_OUT:
            return Unknown(number, number, Cause.TIMED_OUT, "no answer within the delivery timeout", retry=False)
        purged = code in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._DESTROY)
        if purged and not self._ended:
            return Unknown(number, number, Cause.CLOSED, "the sender was closed before the broker answered", False)
        return Unknown(number, number, Cause.DISCONNECTED, error.str(), retry=self._again)

    def _on_statistics(self, statistics: str) -> None:
        if self._forgotten.seen(statistics):
            self._end(Forgotten.REASON)

    def _probe(self) -> None:
        try:
            self._producer.list_topics(self._topic, timeout=0.5)
        except KafkaException:
            return
        self._outage.over()

    def _end(self, reason: str) -> None:
        """The session is void: everything queued is reported, for another one to send again, and it ends."""
        if self._over is None:
            self._over = reason
            self._ended = True
            threading.Thread(target=self._drain, name=f"brokerkit kafka {self._topic} end", daemon=True).start()

    def _drain(self) -> None:
        self._producer.purge(blocking=False)
        give_up = time.monotonic() + 5.0
        while len(self._producer) and time.monotonic() < give_up:
            time.sleep(0.01)
        self._events.disconnected(self._over or "")


def _confirmed(stored: Sequence[tuple[int, tuple[str, Any, Any]]]) -> Iterator[Confirmed]:
    """As few ranges as the numbers, ascending, allow."""
    first, last = stored[0][0], stored[-1][0]
    if last - first == len(stored) - 1:
        yield Confirmed(first, last, [place for _, place in stored])
        return
    start = 0
    for end in range(1, len(stored) + 1):
        if end == len(stored) or stored[end][0] != stored[end - 1][0] + 1:
            yield Confirmed(stored[start][0], stored[end - 1][0], [place for _, place in stored[start:end]])
            start = end


def pack(content_type: str | None, headers: Headers, packed: list[tuple[str, str | bytes]]) -> None:
    """Headers as they are; which of them were bytes is told beside them where their values would not tell."""
    if content_type is not None:
        packed.append(("brokerkit-content-type", content_type))
    marked = []
    for name, value in headers.items():
        packed.append((name, value))
        if isinstance(value, bytes) and _is_text(value):
            marked.append(name)
    if marked:
        packed.append(("brokerkit-bytes", json.dumps(marked)))


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
