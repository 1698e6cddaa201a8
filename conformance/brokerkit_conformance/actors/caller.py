"""Has each message charged by a service, under an idempotency key: `python -m brokerkit_conformance.actors.caller`.

Specification: `url`, `settings`, `actor`, `journal`, `topics`, `subscription`, `store` (URL, of the keys), `books` (URL
of the service), `options` (passed to `Broker.consumer`), `drain`, `handler`:

- `shape`: `calls` (the library makes the request) or `held` (a request of its own, under a key that it holds).
- `stop_at` {point, after}: stands still after so many calls at `after_effect` (the service has answered, and the key is
  in progress), or at `after_finish` (the key is done, and nothing is acked).
- `note`: stands in the body of the request.

Commands: `close`. SIGTERM: clean shutdown.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from brokerkit.errors import KeyInUse, KeyLost, KeyReused, SettleError
from brokerkit.once import Keys, calls
from brokerkit.once.http import Answer
from brokerkit.once.keys import derived_key
from brokerkit_conformance.actors.stage import Stage
from brokerkit_conformance.service import KEY

LEASE = 2.0
_PATIENCE = 30.0


class CallerActor:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.spec = stage.spec
        self.handler: dict[str, Any] = self.spec.get("handler", {})
        self.called = 0
        self._id = ""
        self._stop_at = self.handler.get("stop_at")

    def run(self) -> None:
        subscription = self.spec["subscription"]
        with (
            self.stage.connect() as broker,
            Keys(self.spec["store"], self.spec["topics"][0], lease=LEASE) as keys,
            broker.consumer(
                *self.spec["topics"], subscription=subscription, **self.spec.get("options", {})
            ) as consumer,
        ):
            self.stage.say("READY")
            while not self.stage.stopping.is_set() and self.stage.commands.empty():
                for delivery in consumer.receive(1, 0.25):
                    self.stage.received(delivery, subscription, drain=bool(self.spec.get("drain")))
                    self._one(keys, delivery)
        self.stage.say("DONE", "close", self.called)

    def _one(self, keys: Keys, delivery: Any) -> None:
        self._id = delivery.id
        self.stage.journal.write("call", "invoke", self._id)
        settle = delivery.ack
        shapes = {"calls": self._through_calls, "held": self._held}
        try:
            shapes[self.handler["shape"]](keys)
            self.stage.journal.write("call", "ok", self._id)
        except (KeyLost, KeyInUse, KeyReused) as error:
            self.stage.journal.write("call", "fail", self._id, cause=type(error).__name__)
            if not isinstance(error, KeyReused):
                settle = delivery.nack
        self._maybe_stop("after_finish")
        try:
            settle()
        except SettleError as error:
            self.stage.journal.write("note", text=f"{self._id}: {type(error).__name__}: {error}")

    def _through_calls(self, keys: Keys) -> None:
        service = calls.Calls(keys, window=timedelta(days=1), send=self._send)
        service.call(self._id, "charge", self._request, wait=_PATIENCE)

    def _held(self, keys: Keys) -> None:
        request = self._request()
        key = derived_key(keys.name, self._id, "charge")
        with keys.hold(key, request.body, wait=_PATIENCE) as held:
            if held.fresh:
                answer = self._send(calls.Call(request.method, request.url, request.body, {KEY: key}))
                held.finish(answer.dump())

    def _request(self) -> calls.Call:
        body = {"message": self._id, "note": self.handler.get("note", "")}
        return calls.Call("POST", self.spec["books"], json.dumps(body).encode())

    def _send(self, call: calls.Call) -> Answer:
        answer = calls.send(call)
        self.called += 1
        self._maybe_stop("after_effect")
        return answer

    def _maybe_stop(self, point: str) -> None:
        stop = self._stop_at
        if stop and stop["point"] == point and self.called >= stop.get("after", 0):
            self._stop_at = None
            self.stage.barrier(point, self._id)


def main() -> None:
    CallerActor(Stage()).run()


if __name__ == "__main__":
    main()
