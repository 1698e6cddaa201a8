"""The process that is cut off again and again: `python subject.py URL TOPIC RATE COUNT`.

One producer and one consumer, both at least once. It answers each line of its input with one line of JSON:

- `sample`: what this process holds (threads, descriptors, resident memory) and how far it has come.
- `finish SECONDS`: stops producing, waits for every receipt and, for as long as told, for every confirmed message
  to arrive, and closes; then also how each receipt ended and which confirmed messages never arrived.

What it remembers of each message is a byte that was there from the start, so that its own record does not grow. It
ends with its input.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from itertools import compress

import psutil

import brokerkit
from brokerkit.errors import SettleError

SUBSCRIPTION = "ledger"
BODY = b"x" * 256
CONFIRMED, REFUSED, UNKNOWN = 1, 2, 3


class Subject:
    """Sends numbered messages at `rate` a second, `most` at most, and receives them."""

    def __init__(self, url: str, topic: str, rate: float, most: int) -> None:
        # Written once, so that the pages are resident before anything is measured.
        self.ends = bytearray(b"\1" * most)
        self.seen = bytearray(b"\1" * most)
        self.ends[:] = self.seen[:] = bytes(most)
        self.topic = topic
        self.rate = rate
        self.most = most
        self.sent = 0
        self.received = 0
        self.late = 0
        self.events: Counter[str] = Counter()
        self.sending = threading.Event()
        self.receiving = threading.Event()
        self.broker = brokerkit.connect(url, on_event=lambda event: self.events.update([str(event.kind)]))
        self.broker.declare(topic, [SUBSCRIPTION])
        self.producer = self.broker.producer(topic)
        self.consumer = self.broker.consumer(topic, subscription=SUBSCRIPTION)
        self.threads = [threading.Thread(target=some, daemon=True) for some in (self.produce, self.consume)]
        for event in (self.sending, self.receiving):
            event.set()
        for thread in self.threads:
            thread.start()

    def produce(self) -> None:
        began = time.monotonic()
        while self.sending.is_set() and self.sent < self.most:
            due = min(self.most, int((time.monotonic() - began) * self.rate))
            for number in range(self.sent, due):
                self.producer.send(BODY, id=f"n-{number}", on_end=self.ended)
            self.sent = max(self.sent, due)
            time.sleep(0.01)

    def ended(self, receipt: brokerkit.Receipt) -> None:
        how = {"confirmed": CONFIRMED, "refused": REFUSED, "unknown": UNKNOWN}[receipt.state]
        self.ends[int(receipt.id[2:])] = how

    def consume(self) -> None:
        while self.receiving.is_set():
            for delivery in self.consumer.receive(100, 0.25):
                self.received += 1
                self.seen[int(delivery.id[2:])] = 1
                try:
                    delivery.ack()
                except SettleError:
                    # The connection that it came by is gone: it comes again.
                    self.late += 1

    def sample(self) -> dict[str, object]:
        me = psutil.Process()
        return {
            "threads": me.num_threads(),
            "descriptors": me.num_fds(),
            "memory": me.memory_info().rss,
            "sent": self.sent,
            "confirmed": self.ends.count(CONFIRMED),
            "different": self.seen.count(1),
            "received": self.received,
            "late": self.late,
            "alive": all(thread.is_alive() for thread in self.threads),
            "events": dict(self.events),
        }

    def finish(self, seconds: float) -> dict[str, object]:
        self.sending.clear()
        self.threads[0].join(60.0)
        pending = self.producer.flush(60.0)
        deadline = time.monotonic() + seconds
        while self.missing() and time.monotonic() < deadline:
            time.sleep(0.1)
        self.receiving.clear()
        self.threads[1].join(60.0)
        unanswered = self.consumer.flush(30.0)
        return {
            **self.sample(),
            "pending": pending,
            "refused": self.ends.count(REFUSED),
            "unknown": self.ends.count(UNKNOWN),
            "missing": self.missing(),
            "unanswered": unanswered,
            "unfinished": self.producer.close(),
            "closed": str(self.consumer.close()),
            "depth": self.depth(),
        }

    def missing(self) -> list[int]:
        """Numbers that were confirmed and not received."""
        owed = (end == CONFIRMED and not seen for end, seen in zip(self.ends, self.seen, strict=True))
        return list(compress(range(self.most), owed))

    def depth(self) -> int:
        """What is left on the subscription, once the broker has counted."""
        deadline = time.monotonic() + 30.0
        while (left := self.broker.depth(self.topic, SUBSCRIPTION)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left


def main(url: str, topic: str, rate: str, count: str) -> None:
    subject = Subject(url, topic, float(rate), int(count))
    for line in sys.stdin:
        command, *arguments = line.split()
        answer = subject.sample() if command == "sample" else subject.finish(float(arguments[0]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
