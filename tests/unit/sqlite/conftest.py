"""A driver on a file of its own, and records of what it tells the layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from brokerkit_sqlite.driver import SqliteDriver
from brokerkit_sqlite.settings import SqliteSettings

from brokerkit.driver import Confirmed, Incoming, Position, Receiver, Refused, Settlement, Subscription
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message
from brokerkit.plugins import Url


class Events:
    """Records events; answers `assigned` with `answer`."""

    def __init__(self, answer: Mapping[Any, Position] | None = None) -> None:
        self.answer = answer or {}
        self.told: list[tuple[str, Any]] = []

    def assigned(self, positions: Sequence[Position]) -> Mapping[Any, Position]:
        self.told.append(("assigned", list(positions)))
        return self.answer

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *details: self.told.append((name, details))

    def named(self, name: str) -> list[Any]:
        return [detail for told, detail in self.told if told == name]


class Outbox:
    """One sender and its outcomes by number."""

    def __init__(self, driver: SqliteDriver, topic: str, guarantee: Guarantee, subscription: str | None) -> None:
        self.outcomes: dict[int, Any] = {}
        self.positions: dict[int, Position] = {}
        self.events = Events()
        self.sender = driver.sender(topic, guarantee, self._record, self.events, subscription=subscription)

    def _record(self, outcomes: Sequence[Any]) -> None:
        for outcome in outcomes:
            for number in range(outcome.first, outcome.last + 1):
                assert number not in self.outcomes, "a number got two outcomes"
                self.outcomes[number] = outcome
                if isinstance(outcome, Confirmed):
                    self.positions[number] = outcome.positions[number - outcome.first]

    def send(self, *bodies: bytes | Message, delay: float = 0.0) -> None:
        messages = [body if isinstance(body, Message) else Message(body) for body in bodies]
        assert self.sender.send(messages, delay) == len(messages)

    def refused(self) -> list[Refused]:
        return [outcome for _, outcome in sorted(self.outcomes.items()) if isinstance(outcome, Refused)]


class Inbox:
    """One receiver, its settlements by token."""

    def __init__(
        self,
        driver: SqliteDriver,
        topics: Sequence[str],
        subscription: Subscription,
        guarantee: Guarantee,
        answer: Mapping[Any, Position] | None,
        **options: Any,
    ) -> None:
        self.ends: dict[Any, str] = {}
        self.events = Events(answer)
        self.receiver: Receiver = driver.receiver(topics, subscription, guarantee, self._record, self.events, **options)

    def _record(self, settlements: Sequence[Settlement]) -> None:
        for tokens, end, _ in settlements:
            self.ends.update(dict.fromkeys(tokens, str(end)))

    def receive(self, count: int = 100, timeout: float = 5.0) -> Sequence[Incoming]:
        return self.receiver.receive(count, timeout)

    def bodies(self, count: int = 100, timeout: float = 5.0) -> list[bytes | None]:
        return [incoming.body for incoming in self.receive(count, timeout)]

    def nothing(self) -> bool:
        return not self.receive(100, 0.0)

    def ack(self, *incoming: Incoming) -> list[str]:
        tokens = [one.token for one in incoming]
        self.receiver.settle(acks=tokens)
        return [self.ends[token] for token in tokens]

    def settle(self, **settlements: Any) -> None:
        self.receiver.settle(**settlements)


class Rig:
    """Drivers on one file, as processes of their own would have them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.drivers: list[SqliteDriver] = []
        self.open: list[Any] = []
        self.driver = self.another()

    def another(self, **settings: Any) -> SqliteDriver:
        url = Url("sqlite", "", f"/{self.path}")
        self.drivers.append(SqliteDriver(url, SqliteSettings(**settings)))
        return self.drivers[-1]

    def declare(self, topic: str = "orders", *names: str, native: Mapping[str, Any] = {}, **settings: Any) -> None:
        subscriptions = [Subscription(name, native=native, **settings) for name in names or ("main",)]
        self.driver.declare(topic, subscriptions, native)

    def outbox(
        self,
        topic: str = "orders",
        guarantee: Guarantee = Guarantee.AT_LEAST_ONCE,
        subscription: str | None = None,
        driver: SqliteDriver | None = None,
    ) -> Outbox:
        outbox = Outbox(driver or self.driver, topic, guarantee, subscription)
        self.open.append(outbox.sender)
        return outbox

    def inbox(
        self,
        *topics: str,
        name: str = "main",
        guarantee: Guarantee = Guarantee.AT_LEAST_ONCE,
        answer: Mapping[Any, Position] | None = None,
        driver: SqliteDriver | None = None,
        attempts: int | None = None,
        **options: Any,
    ) -> Inbox:
        subscription = Subscription(name, attempts=attempts)
        inbox = Inbox(driver or self.driver, topics or ("orders",), subscription, guarantee, answer, **options)
        self.open.append(inbox.receiver)
        return inbox

    def close(self) -> None:
        for opened in self.open:
            opened.close(1.0)
        for driver in self.drivers:
            driver.close(1.0)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "queue.db")
    yield made
    made.close()


@pytest.fixture
def rig_of() -> type[Rig]:
    return Rig
