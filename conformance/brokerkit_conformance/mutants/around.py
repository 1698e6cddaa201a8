"""Thin shells around a driver and its sessions: everything passes through, until a mutant changes one thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from brokerkit.broker import Broker
from brokerkit.driver import (
    Confirmed,
    Driver,
    Incoming,
    Nack,
    Outcome,
    Outcomes,
    Refused,
    Reject,
    Sender,
    Settled,
    Settlement,
    Token,
    Unknown,
)
from brokerkit.errors import ConnectionLost
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message


class Shell:
    """Whatever is not defined here is asked of what is inside."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)


class SenderShell(Shell):
    """Around a Sender that takes batches. `outcomes` tells the layer; `told` is what the driver tells."""

    post = None

    def __init__(self, outcomes: Callable[[Sequence[Outcome]], None]) -> None:
        super().__init__(None)
        self.outcomes = outcomes

    def told(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes(outcomes)


class _Numbered(Shell):
    """Around a Sender that takes messages one by one, to make it one that takes batches."""

    def __init__(self, inside: Sender, guarantee: Guarantee, told: Outcomes) -> None:
        super().__init__(inside)
        self._confirms = guarantee is not Guarantee.AT_MOST_ONCE
        self._told = told
        self._next = 0

    def send(self, messages: Sequence[Message], delay: float = 0.0) -> int:
        for taken, message in enumerate(messages):
            try:
                if not self.inside.post(_Number(self._next, self._tell), *message[:6]):
                    return taken
            except ConnectionLost:
                if not taken:
                    raise
                return taken
            self._next += 1
        return len(messages)

    def _tell(self, outcome: Outcome) -> None:
        if self._confirms or isinstance(outcome, Refused):
            self._told([outcome])


class _Number:
    """A message by its number, to be told how it ended."""

    def __init__(self, number: int, tell: Callable[[Outcome], None]) -> None:
        self._number = number
        self._tell = tell

    def stored(self, topic: str, lane: int | str, place: int | str | None) -> None:
        self._tell(Confirmed(self._number, self._number, None if place is None else [(topic, lane, place)]))

    def failed(self, outcome: Refused | Unknown) -> None:
        self._tell(outcome._replace(first=self._number, last=self._number))


class ReceiverShell(Shell):
    """Around a Receiver. `settled` tells the layer; `told` is what the driver tells."""

    def __init__(self, settled: Settled) -> None:
        super().__init__(None)
        self.settled = settled
        self.reopen: Callable[[], None] = lambda: None
        """Puts a new session of the driver inside."""

    def told(self, settlements: Sequence[Settlement]) -> None:
        self.settled(settlements)

    def events(self, events: Any) -> Any:
        """What the driver gets to tell its events to."""
        return events

    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        return self.inside.receive(max_messages, timeout)  # type: ignore[no-any-return]

    def settle(self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()) -> None:
        self.inside.settle(acks, nacks, rejects)


class TransactorShell(Shell):
    """Around a Transactor."""

    def __init__(self) -> None:
        super().__init__(None)


class DriverShell(Shell):
    """Around a Driver: puts its sessions into shells of these kinds."""

    def __init__(
        self,
        inside: Driver,
        sender: type[SenderShell] | None = None,
        receiver: type[ReceiverShell] | None = None,
        transactor: type[TransactorShell] | None = None,
    ) -> None:
        super().__init__(inside)
        self._transactor = transactor
        self._sender = sender
        self._receiver = receiver

    def sender(self, topic: str, guarantee: Any, outcomes: Any, events: Any, **options: Any) -> Any:
        if self._sender is None:
            return self.inside.sender(topic, guarantee, outcomes, events, **options)
        shell = self._sender(outcomes)
        sender = self.inside.sender(topic, guarantee, shell.told, events, **options)
        shell.inside = sender if sender.post is None else _Numbered(sender, guarantee, shell.told)
        return shell

    def receiver(
        self, topics: Any, subscription: Any, guarantee: Any, settled: Any, events: Any, **options: Any
    ) -> Any:
        if self._receiver is None:
            return self.inside.receiver(topics, subscription, guarantee, settled, events, **options)
        shell = self._receiver(settled)
        told = shell.events(events)

        def reopen() -> None:
            shell.inside = self.inside.receiver(topics, subscription, guarantee, shell.told, told, **options)

        shell.reopen = reopen
        reopen()
        return shell

    def transactor(self, topics: Any, subscription: Any, *, instance: str | None, **options: Any) -> Any:
        inside = self.inside.transactor(topics, subscription, instance=instance, **options)
        if self._transactor is None:
            return inside
        shell = self._transactor()
        shell.inside = inside
        return shell


def broken(
    broker: Broker,
    *,
    sender: type[SenderShell] | None = None,
    receiver: type[ReceiverShell] | None = None,
    transactor: type[TransactorShell] | None = None,
) -> Broker:
    """The broker, with its driver's sessions in these shells."""
    broker.driver = DriverShell(broker.driver, sender, receiver, transactor)  # type: ignore[assignment]
    return broker


def tokens(nacks: Iterable[Nack]) -> list[Token]:
    return [nack.token for nack in nacks]
