"""A producer in a process of its own: `python -m brokerkit_conformance.actors.producer`.

Specification: `url`, `settings`, `actor`, `journal`, `topic`, `guarantee`, `delivery_timeout`, `prefix`.
Commands: `send` {count, keys, size, rate, kind, first}, `close`. A `send` is done when every receipt has ended;
`first` begins to count there, to send again what was sent.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from brokerkit_conformance.actors.stage import Stage
from brokerkit_conformance.messages import Sample, plain, samples

_BEHIND = 0.1
"""Seconds that a stream may be late and still catch up."""

_ENDS = {"confirmed": "ok", "refused": "fail", "unknown": "info"}


class ProducerActor:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.spec = stage.spec
        self.sent = 0
        self._confirms = self.spec["guarantee"] != "at_most_once"

    def run(self) -> None:
        timeout = float(self.spec.get("delivery_timeout", 30.0))
        with self.stage.connect() as broker:
            with broker.producer(
                self.spec["topic"], guarantee=self.spec["guarantee"], delivery_timeout=timeout
            ) as producer:
                self.stage.say("READY")
                while (command := self.stage.commands.get())["do"] != "close":
                    self._send(producer, command)
                    left = producer.flush(timeout + 10.0) if self._confirms else 0
                    self.stage.say("DONE", "send", left)
        self.stage.say("DONE", "close", 0)

    def _send(self, producer: Any, command: dict[str, Any]) -> None:
        pause = 1.0 / command["rate"] if command.get("rate") else 0.0
        due = time.monotonic()
        for sample in self._messages(command):
            if self.stage.stopping.is_set():
                break
            self._send_one(producer, sample)
            # What an outage kept back is not made up for: a broker that comes back is met by no more than before.
            due = max(due + pause, time.monotonic() - _BEHIND)
            if (early := due - time.monotonic()) > 0:
                self.stage.stopping.wait(early)

    def _messages(self, command: dict[str, Any]) -> Iterable[Sample]:
        prefix = self.spec["prefix"]
        if command.get("kind") == "samples":
            return samples(prefix, command.get("largest"))
        first = command.get("first", self.sent)
        return plain(prefix, first, command["count"], command.get("keys", 0), command.get("size", 64))

    def _send_one(self, producer: Any, sample: Sample) -> None:
        seq, self.sent = self.sent, self.sent + 1
        self.stage.journal.write(
            "send", "invoke", sample.id, topic=self.spec["topic"], key=sample.key, sha=sample.digest, seq=seq
        )
        try:
            producer.send(
                sample.body,
                id=sample.id,
                key=sample.key,
                headers=sample.headers_with_digest(),
                content_type=sample.content_type,
                on_end=self._ended,
            )
        except Exception as error:
            # What send itself raises was never handed to the broker.
            self.stage.journal.write("send", "fail", sample.id, cause=type(error).__name__, detail=str(error))
            return
        if not self._confirms:
            self.stage.journal.write("send", "info", sample.id, cause="not_asked")

    def _ended(self, receipt: Any) -> None:
        if not self._confirms:
            return
        error = receipt.error
        self.stage.journal.write(
            "send",
            _ENDS[str(receipt.state)],
            receipt.id,
            position=None if receipt.position is None else str(receipt.position),
            attempts=receipt.attempts,
            cause=None if error is None else str(getattr(error, "cause", type(error).__name__)),
            detail=None if error is None else str(error),
        )


def main() -> None:
    ProducerActor(Stage()).run()


if __name__ == "__main__":
    main()
