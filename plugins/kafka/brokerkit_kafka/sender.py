"""One idempotent producer, and a thread that polls it."""

from __future__ import annotations

import threading
import time
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from brokerkit.driver import Cause, Poster, Refused, SenderEvents, Unknown
from brokerkit.errors import ConfigurationError
from brokerkit.guarantees import Guarantee
from brokerkit_kafka.errors import NOT_STORED
from brokerkit_kafka.outage import Forgotten, Outage
from brokerkit_kafka.posting import SERVING, Posting

BUSY = 0.002
"""Seconds after which the polling thread looks again whether somebody still sends, and polls meanwhile."""
SETTLED = 0.02
"""Seconds after which a new producer has looked for a broker that gives it its id, and found none connected yet. If a
message is sent before that, it does not look again for 500 ms, unless metadata are asked for in between."""


class KafkaSender(Poster):
    """librdkafka retries and reconnects by itself until the delivery timeout; an unknown end is final under
    exactly_once, where another attempt could not be recognised. The thread `brokerkit kafka TOPIC` polls for
    delivery reports, and so does a `send` now and then; what one poll brought is passed on as one batch."""

    def __init__(
        self,
        config: dict[str, Any],
        topic: str,
        guarantee: Guarantee,
        events: SenderEvents,
    ) -> None:
        self._topic = topic
        self._confirms = guarantee is not Guarantee.AT_MOST_ONCE
        self._again = guarantee is Guarantee.AT_LEAST_ONCE
        self._events = events
        self._told = self._stored = 0
        self._telling = threading.Lock()
        self._ended = False
        self._closed = False
        self._outage = Outage(events)
        self._forgotten = Forgotten()
        callbacks = {"error_cb": self._outage.seen, "stats_cb": self._on_statistics}
        try:
            self._producer = Producer({**config, **callbacks})
        except KafkaException as error:
            raise ConfigurationError(f"client options: {error.args[0].str()}") from None
        self._posting = Posting(self._producer.produce, topic, self._serve_and_tell, self._outcome, self._end)
        self.post = self._posting.post
        self._thread = threading.Thread(target=self._poll, name=f"brokerkit kafka {topic}", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Waits for delivery reports, then drops what has none: those end unknown."""
        deadline = time.monotonic() + timeout
        self._posting.over = self._posting.over or "the sender was closed"
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
        self._posting.closed = True

    # ------------------------------------------------------------ the polling thread

    def _serve_and_tell(self) -> None:
        self._serve(0)
        self._tell()

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
        taken = 0
        while not self._closed:
            if self._posting.taken - taken >= SERVING:
                taken = self._posting.taken
                time.sleep(BUSY)
                continue
            self._serve(0.1)
            self._tell()
            if self._outage.probe_due():
                self._probe()

    def _tell(self) -> None:
        posting = self._posting
        with self._telling:
            told, self._told = posting.told - self._told, posting.told
            stored, self._stored = posting.stored - self._stored, posting.stored
        if stored:
            self._outage.over()
        self._events.told(told)

    def _outcome(self, error: KafkaError) -> Refused | Unknown:
        code = error.code()
        if code in NOT_STORED:
            return Refused(0, 0, NOT_STORED[code], error.str())
        if code == KafkaError._MSG_TIMED_OUT and not self._confirms:  # written once, it would count as delivered
            return Refused(0, 0, Cause.UNREACHABLE, "it could not be written in time")
        if code == KafkaError._MSG_TIMED_OUT:
            return Unknown(0, 0, Cause.TIMED_OUT, "no answer within the delivery timeout", retry=False)
        purged = code in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._DESTROY)
        if purged and not self._ended:
            return Unknown(0, 0, Cause.CLOSED, "the sender was closed before the broker answered", False)
        return Unknown(0, 0, Cause.DISCONNECTED, error.str(), retry=self._again)

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
        if self._posting.over is None:
            self._posting.over = reason
            self._ended = True
            threading.Thread(target=self._drain, name=f"brokerkit kafka {self._topic} end", daemon=True).start()

    def _drain(self) -> None:
        self._producer.purge(blocking=False)
        give_up = time.monotonic() + 5.0
        while len(self._producer) and time.monotonic() < give_up:
            time.sleep(0.01)
        self._events.disconnected(self._posting.over or "")
