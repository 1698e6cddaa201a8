"""Histories written by hand: one short call an event, a second of time between any two."""

from __future__ import annotations

from typing import Any

from brokerkit_conformance.history import Event, History

SECOND = 1_000_000_000


class Script:
    """Appends events; `at` counts seconds. Every method returns the script."""

    def __init__(self, **cell: Any) -> None:
        self.events: list[Event] = []
        self.at = 0
        if cell:
            cell = {
                "guarantee": "at_least_once",
                "producer_guarantee": "at_least_once",
                "claim": {"loss": "never", "duplicate": "never"},
                **cell,
            }
            self.add("cell", "info", actor="suite", **cell)

    def add(self, op: str, type: str, id: str | None = None, actor: str = "suite", **more: Any) -> Script:
        self.at += 1
        self.events.append(Event(self.at * SECOND, self.at * 1000, actor, 1, op, type, id, more))
        return self

    def send(self, id: str, end: str | None = "ok", actor: str = "producer-1#1", **more: Any) -> Script:
        self.add("send", "invoke", id, actor, key=more.get("key"), sha=f"sha-{id}", seq=self.at)
        if end is not None:
            self.add("send", end, id, actor, **more)
        return self

    def receive(self, id: str, actor: str = "consumer-1#1", **more: Any) -> Script:
        more = {"subscription": "ledger", "sha": f"sha-{id}", "headers_ok": True, **more}
        return self.add("receive", "ok", id, actor, **more)

    def effect(self, id: str, actor: str = "consumer-1#1", subscription: str = "ledger") -> Script:
        return self.add("effect", "ok", id, actor, subscription=subscription)

    def ack(self, id: str, end: str | None = "settled", actor: str = "consumer-1#1") -> Script:
        self.add("ack", "invoke", id, actor)
        if end is not None:
            self.add("ack", "ok", id, actor, end=end)
        return self

    def handle(self, id: str, actor: str = "consumer-1#1", end: str | None = "settled", **more: Any) -> Script:
        """Received, effected and acked, as a healthy consumer does."""
        return self.receive(id, actor, **more).effect(id, actor, more.get("subscription", "ledger")).ack(id, end, actor)

    def fault(self, kind: str = "kill", target: str = "consumer-1#1", trial: int = 1, **evidence: Any) -> Script:
        self.add("fault", "invoke", kind=kind, target=target, trial=trial)
        return self.add("fault", "ok", kind=kind, target=target, trial=trial, evidence=evidence)

    def killed(self, target: str = "consumer-1#1") -> Script:
        return self.fault("kill", target, status=-9).add("process_end", "info", target=target, status=-9)

    def drained(self, reason: str = "complete", **more: Any) -> Script:
        return self.add("drain_begin", "info").add("drain_end", "info", reason=reason, **more)

    @property
    def history(self) -> History:
        return History(self.events)
