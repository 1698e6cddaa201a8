"""A consumer in a process of its own: `python -m brokerkit_conformance.actors.consumer`.

Specification: `url`, `settings`, `actor`, `journal`, `topics`, `subscription`, `guarantee`, `options` (passed to
`Broker.consumer`), `handler`:

- `stop_at` {point, after}: stands still at `before_processing` or `before_ack` of the delivery after so many.
- `behind`: the first handler begins once so many deliveries wait behind it.
- `work`: seconds the handler takes. `batch`: messages asked for at once.
- `nack` {delay, times, ids}: gives each of these messages back so many times before it works on it.
- `poison`: ids that are given back for ever. `dead`: what arrives is a dead letter, read as such.
- `gather`: waits for so many at a time and works on the last first, so that acks come against the order.
- `hold`: receives and never settles. `waits`: receives nothing until it is told what to do.

Commands: `close`, `try_settle` (see settle_errors). SIGTERM: clean shutdown.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from typing import Any

from brokerkit.errors import BrokerkitError
from brokerkit_conformance.actors.stage import Stage

_GATHER_SECONDS = 10.0
_FORK_SECONDS = 10


class ConsumerActor:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.spec = stage.spec
        self.handler: dict[str, Any] = self.spec.get("handler", {})
        self.at_most_once = self.spec["guarantee"] == "at_most_once"
        self.batch = int(self.handler.get("batch", 20))
        self.handled = 0
        self.given_back: Counter[str] = Counter()
        self._stop_at = self.handler.get("stop_at")

    def run(self) -> None:
        with self.stage.connect() as broker:
            consumer = broker.consumer(
                *self.spec["topics"],
                subscription=self.spec["subscription"],
                guarantee=self.spec["guarantee"],
                on_end=self._ended,
                **self.spec.get("options", {}),
            )
            self.stage.say("READY")
            try:
                self._loop(consumer)
            finally:
                report = consumer.close(timeout=20.0)
                self.stage.journal.write("note", text=f"closed: {report}")
        self.stage.say("DONE", "close", self.handled)

    def _loop(self, consumer: Any) -> None:
        behind = int(self.handler.get("behind", 0))
        while not self.stage.stopping.is_set():
            if not self.stage.commands.empty():
                command = self.stage.commands.get()
                if command["do"] == "close":
                    return
                self._try_settle(consumer)
                continue
            if self.handler.get("waits"):
                self.stage.stopping.wait(0.05)
                continue
            batch = self._batch(consumer)
            if batch and behind:
                self._wait_behind(consumer, behind + len(batch))
                behind = 0
            for delivery in batch:
                self._received(delivery)
            for delivery in batch:
                # What was acked at hand-over is never given back: it is worked on, also while stopping.
                if self.stage.stopping.is_set() and not self.at_most_once:
                    break
                self._handle(delivery)

    def _wait_behind(self, consumer: Any, wanted: int) -> None:
        until = time.monotonic() + _GATHER_SECONDS
        while consumer.held < wanted and time.monotonic() < until:
            time.sleep(0.02)
        self.stage.journal.write("held", "ok", count=consumer.held)

    def _batch(self, consumer: Any) -> list[Any]:
        batch: list[Any] = consumer.receive(max_messages=self.batch, timeout=0.25)
        wanted = int(self.handler.get("gather", 0))
        until = time.monotonic() + _GATHER_SECONDS
        while batch and len(batch) < wanted and time.monotonic() < until and not self.stage.stopping.is_set():
            batch += consumer.receive(max_messages=self.batch, timeout=0.25)
        return batch[::-1] if wanted else batch

    def _handle(self, delivery: Any) -> None:
        id = delivery.id
        self._maybe_stop("before_processing", id)
        if self.handler.get("hold"):
            return
        if id in self.handler.get("poison", ()):
            self._settle("nack", delivery, delay=0.0)
            return
        nack = self.handler.get("nack")
        if nack and (not nack.get("ids") or id in nack["ids"]) and self.given_back[id] < nack["times"]:
            self.given_back[id] += 1
            self._settle("nack", delivery, delay=nack["delay"])
            return
        if work := self.handler.get("work"):
            time.sleep(work)
        if self.handler.get("dead"):
            self.stage.journal.write("dead", "ok", id, reason=delivery.dead_reason, attempt=delivery.attempt)
        else:
            self.stage.journal.write("effect", "ok", id, subscription=self.spec["subscription"])
        self._maybe_stop("before_ack", id)
        self._settle("ack", delivery)
        self.handled += 1

    def _received(self, delivery: Any) -> None:
        self.stage.received(delivery, self.spec["subscription"], drain=bool(self.spec.get("drain")))

    def _settle(self, how: str, delivery: Any, **options: Any) -> None:
        if self.at_most_once:
            # Acked at hand-over; there is nothing left to settle.
            return
        self.stage.journal.write(how, "invoke", delivery.id, **options)
        try:
            getattr(delivery, how)(**options)
        except BrokerkitError as error:
            self.stage.journal.write(how, "fail", delivery.id, error=type(error).__name__, detail=str(error))

    def _ended(self, delivery: Any, *_: Any) -> None:
        if not self.at_most_once:
            self.stage.journal.write("ack", "ok", delivery.id, end=_end(delivery.state))

    def _maybe_stop(self, point: str, id: str) -> None:
        stop = self._stop_at
        if stop and stop["point"] == point and self.handled >= stop.get("after", 0):
            self._stop_at = None
            self.stage.barrier(point, id)

    def _try_settle(self, consumer: Any) -> None:
        """Settles one delivery where it must not be: twice, in another process, after close."""
        first, second, third = _take(consumer, 3)
        for delivery in (first, second, third):
            self._received(delivery)
        for delivery in (first, second):
            self.stage.journal.write("effect", "ok", delivery.id, subscription=self.spec["subscription"])
        first.ack()
        self._expect("ack after ack raises AlreadySettled", ("AlreadySettled",), _name_of_error(first.ack))
        self._expect("nack after ack raises AlreadySettled", ("AlreadySettled",), _name_of_error(first.nack))
        self._expect(
            "reject after ack raises AlreadySettled, or NotSupported where there are no dead letters",
            ("AlreadySettled", "NotSupported"),
            _name_of_error(first.reject),
        )
        self._expect("ack in another process raises Forked", ("Forked",), _in_a_fork(second.ack))
        second.ack()
        consumer.close(timeout=20.0)
        after = _name_of_error(third.ack)
        self._expect("ack after close raises LeaseLost or Closed", ("LeaseLost", "Closed"), after)
        self._expect("receive after close raises Closed", ("Closed",), _name_of_error(consumer.receive))
        self.stage.stopping.set()

    def _expect(self, what: str, wanted: tuple[str, ...], got: str) -> None:
        self.stage.journal.write("expect", "ok" if got in wanted else "fail", what=what, got=got)


def _end(state: object) -> str:
    return str(getattr(state, "value", state))


def _take(consumer: Any, count: int, seconds: float = 30.0) -> list[Any]:
    found: list[Any] = []
    until = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < until:
        found += consumer.receive(max_messages=count - len(found), timeout=0.5)
    return found


def _name_of_error(call: Any) -> str:
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "no error"


def _in_a_fork(call: Any) -> str:
    """The name of what `call` raises in a forked child; "no answer" when it hangs there, or dies of it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_FORK_SECONDS)
        os.write(write, _name_of_error(call).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        name = answer.read().decode()
    os.waitpid(child, 0)
    return name or "no answer"


def main() -> None:
    ConsumerActor(Stage()).run()


if __name__ == "__main__":
    main()
