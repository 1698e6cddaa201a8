"""One outage, told once: librdkafka repeats its errors for as long as no broker answers. And the one that it does
not come back from."""

from __future__ import annotations

import re
import threading
import time
from typing import Protocol

from confluent_kafka import KafkaError

from brokerkit_kafka.errors import ACCESS

_TELLING = {KafkaError._ALL_BROKERS_DOWN, *ACCESS}


class Told(Protocol):
    def trouble(self, reason: str) -> None: ...
    def recovered(self) -> None: ...


class Outage:
    """Reports trouble when no broker can be reached, and recovery once when one answers again. Thread-safe."""

    def __init__(self, events: Told) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._on = False
        self._probe_at = 0.0

    def seen(self, error: KafkaError) -> None:
        """What the client's error callback brought."""
        if error.code() in _TELLING:
            with self._lock:
                if self._on:
                    return
                self._on = True
                self._probe_at = time.monotonic() + 0.5
            self._events.trouble(error.str())

    def over(self) -> None:
        """A broker answered."""
        if self._on:
            with self._lock:
                if not self._on:
                    return
                self._on = False
            self._events.recovered()

    def probe_due(self) -> bool:
        """Whether it is time to ask the broker for a sign of life."""
        now = time.monotonic()
        if not self._on or now < self._probe_at:
            return False
        self._probe_at = now + 1.0
        return True


class Forgotten:
    """Notices a client that has no broker left to talk to.

    A node that was fenced, because it stood still or was cut off from its controller, lists no brokers at all for a
    moment. librdkafka believes it, drops the last broker that it knew, and may not read `bootstrap.servers` again
    before the process ends (confluentinc/librdkafka#5301). Its statistics then have no broker but logical ones, or
    only brokers that it does not try to connect to (seen for minutes; one that is down is tried again and again).
    """

    REASON = "the client has lost sight of every broker: a node told it of none"
    _BROKER = re.compile(r'"source":\s*"(?:learned|configured)",\s*"state":\s*"(\w+)",\s*"stateage":\s*(\d+)')
    _UNTRIED, _LONG = "INIT", 5_000_000
    """A broker that is down comes back to this state after each attempt, twice a second; microseconds."""

    def __init__(self) -> None:
        self._times = 0

    def seen(self, statistics: str) -> bool:
        """What the client's statistics callback brought; True when it was so twice in a row."""
        brokers = self._BROKER.findall(statistics)
        tried = any(state != self._UNTRIED or int(age) < self._LONG for state, age in brokers)
        self._times = 0 if tried else self._times + 1
        return self._times >= 2
