"""Money in another service, as a check of idempotency keys tells it: payments, callers behind them, and the service."""

from __future__ import annotations

from brokerkit_conformance.charging import ChargerActor, Charging
from brokerkit_conformance.history import Event
from brokerkit_conformance.service import Service
from brokerkit_conformance.story import Story


class Calling(Charging):
    """As `Charging`, with callers for chargers, keys in the store, and the service's own books."""

    role = "caller"
    shape = "calls"
    books: Service

    def __init__(self, story: Story) -> None:
        super().__init__(story, Service())

    def call_of(self, caller: ChargerActor, id: str, timeout: float) -> Event | None:
        """How the caller's call for this message ended, if it did in time."""

        def ended() -> list[Event]:
            calls = self.story.tail.by(caller.name, "call")
            return [event for event in calls if event.id == id and event.type != "invoke"]

        self.story.wait(lambda: bool(ended()), timeout)
        return next(iter(ended()), None)
