"""Relays an outbox: `python -m brokerkit_conformance.actors.relayer`.

Specification: `url`, `settings`, `actor`, `journal`, `store` (URL), `outbox`, `batch`, `handler`:

- `stop_at` {point}: stands still at `half_done`, where of sending the first rows and marking them one is done and the
  other about to begin, in whichever order.

Commands: `close`. SIGTERM: clean shutdown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from brokerkit.once import Relay
from brokerkit.once.stores import store_for
from brokerkit.producer import Producer
from brokerkit_conformance.actors.stage import Stage


class RelayerActor:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.spec = stage.spec
        self._stop_at = self.spec.get("handler", {}).get("stop_at")
        self._first = ""

    def run(self) -> None:
        with self.stage.connect() as broker:
            self._stop_between()
            relay = Relay(self.spec["store"], broker, outbox=self.spec["outbox"], batch=self.spec["batch"], poll=0.1)
            with relay:
                self.stage.say("READY")
                self.stage.commands.get()
        self.stage.say("DONE", "close", relay.sent)

    def _stop_between(self) -> None:
        """Sending and marking are one round of the library's: the line between them is in there."""
        store: Any = store_for(self.spec["store"])
        delete, send_many = store.delete, Producer.send_many

        def marking(connection: Any, ids: Sequence[int]) -> None:
            self._begins("mark", ids[0])
            delete(connection, ids)

        def sending(producer: Producer, messages: Any, **options: Any) -> Any:
            self._begins("send", next(iter(messages)).id)
            return send_many(producer, messages, **options)

        store.delete = marking
        Producer.send_many = sending  # type: ignore[method-assign, assignment]

    def _begins(self, what: str, which: object) -> None:
        self._first = self._first or what
        if self._stop_at and what != self._first:
            self._stop_at = None
            self.stage.barrier("half_done", str(which))


def main() -> None:
    RelayerActor(Stage()).run()


if __name__ == "__main__":
    main()
