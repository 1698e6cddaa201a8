"""Reads what transactions sent, in a process of its own: `python -m brokerkit_conformance.actors.reader`.

Specification: `url`, `settings`, `actor`, `journal`, `reads` (a list of {topic, subscription}), `peek`: what is not
committed is looked at as well, and only written down as such. A stored copy has its effect once, however often it is
handed out: what is judged is what there is to read, not this reader.

Commands: `close`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from brokerkit_conformance.actors.stage import Stage
from brokerkit_conformance.messages import TRANSACTION, digest


class ReaderActor:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.spec = stage.spec
        self.seen: set[tuple[str, str]] = set()

    def run(self) -> None:
        with self.stage.connect() as broker, ExitStack() as stack:
            reads = [
                (
                    read["subscription"],
                    stack.enter_context(broker.consumer(read["topic"], subscription=read["subscription"])),
                )
                for read in self.spec["reads"]
            ]
            self.stage.say("READY")
            while not self.stage.stopping.is_set() and self.stage.commands.empty():
                for subscription, consumer in reads:
                    for delivery in consumer.receive(200, timeout=0.1):
                        self._read(delivery, subscription)
                        delivery.ack()
        self.stage.say("DONE", "close", len(self.seen))

    def _read(self, delivery: Any, subscription: str) -> None:
        headers = dict(delivery.headers)
        transaction = headers.pop(TRANSACTION, None)
        if self.spec.get("peek"):
            self.stage.journal.write("peek", "ok", delivery.id, txn=transaction, topic=delivery.topic)
            return
        found = digest(delivery.body, delivery.key, headers, delivery.content_type)
        copy = str(delivery.position or delivery.id)
        self.stage.journal.write(
            "receive",
            "ok",
            delivery.id,
            txn=transaction,
            position=copy,
            key=delivery.key,
            sha=found,
            topic=delivery.topic,
            subscription=subscription,
            headers_ok=headers.get("suite-digest") == found,
        )
        if (subscription, copy) not in self.seen:
            self.seen.add((subscription, copy))
            self.stage.journal.write("effect", "ok", delivery.id, subscription=subscription)


def main() -> None:
    ReaderActor(Stage()).run()


if __name__ == "__main__":
    main()
