"""Broken adapters. Each function takes a working broker and returns it broken in one way; actors find it by name."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from brokerkit import _fork
from brokerkit.broker import Broker
from brokerkit.driver import Cause, Confirmed, End, Incoming, Nack, Outcome, Refused, Reject, Settlement, Token
from brokerkit.errors import BrokerkitError, ConnectionLost
from brokerkit.message import Message, new_id
from brokerkit_conformance.mutants.around import (
    DriverShell,
    ReceiverShell,
    SenderShell,
    TransactorShell,
    broken,
    tokens,
)

# ---------------------------------------------------------------- acks


def acks_before_processing(broker: Broker) -> Broker:
    """The broker is told at once that everything is done; the handler's acks go nowhere."""

    class AcksAtOnce(ReceiverShell):
        def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
            received = super().receive(max_messages, timeout)
            if received:
                super().settle([one.token for one in received])
                self.inside.flush(2.0)
            return received

        def settle(
            self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()
        ) -> None:
            self.settled([Settlement([*acks, *tokens(nacks)], End.SETTLED)])

        def flush(self, timeout: float) -> None:
            """There is nothing left to ask for."""

        def extend(self, held: Sequence[Token], seconds: float) -> None:
            """There is nothing left to renew."""

    return broken(broker, receiver=AcksAtOnce)


def ack_does_nothing(broker: Broker) -> Broker:
    """An ack is reported as settled, and the broker never hears of it."""

    class Deaf(ReceiverShell):
        def settle(
            self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()
        ) -> None:
            if acks:
                self.settled([Settlement(acks, End.SETTLED)])
            if nacks or rejects:
                super().settle((), nacks, rejects)

    return broken(broker, receiver=Deaf)


def commits_the_highest(broker: Broker) -> Broker:
    """An ack takes everything with it that was handed out before, as committing the highest offset does."""

    class Highest(ReceiverShell):
        def __init__(self, settled: Any) -> None:
            super().__init__(settled)
            self.order: list[Token] = []

        def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
            received = super().receive(max_messages, timeout)
            self.order += [one.token for one in received]
            return received

        def settle(
            self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()
        ) -> None:
            given_back = set(tokens(nacks)) | {reject.token for reject in rejects}
            last = max((self.order.index(token) for token in acks if token in self.order), default=-1)
            taken, self.order = self.order[: last + 1], self.order[last + 1 :]
            self.order = [token for token in self.order if token not in given_back]
            late = [token for token in acks if token not in taken]
            if late:
                self.settled([Settlement(late, End.SETTLED)])
            super().settle([token for token in taken if token not in given_back], nacks, rejects)

        def extend(self, held: Sequence[Token], seconds: float) -> None:
            self.inside.extend([token for token in held if token in self.order], seconds)

    return broken(broker, receiver=Highest)


def old_tag_on_a_new_channel(broker: Broker) -> Broker:
    """Reconnects by itself, and acks on the new channel with the tags of the old one."""

    class OldTags(ReceiverShell):
        def events(self, events: Any) -> Any:
            class Quiet:
                def disconnected(self, reason: str) -> None:
                    """Nobody needs to know."""

                def __getattr__(self, name: str) -> Any:
                    return getattr(events, name)

            return Quiet()

        def told(self, settlements: Sequence[Settlement]) -> None:
            self.settled([one._replace(end=End.SETTLED) if one.end is not End.SENT else one for one in settlements])

        def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
            try:
                return super().receive(max_messages, timeout)
            except ConnectionLost:
                self._again()
                return ()

        def settle(
            self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()
        ) -> None:
            try:
                super().settle(acks, nacks, rejects)
            except ConnectionLost:
                time.sleep(0.5)
                super().settle(acks, nacks, rejects)

        def flush(self, timeout: float) -> None:
            try:
                self.inside.flush(timeout)
            except ConnectionLost:
                return

        def _again(self) -> None:
            try:
                self.reopen()
            except BrokerkitError:
                time.sleep(0.2)

    return broken(broker, receiver=OldTags)


def late_ack_reported_settled(broker: Broker) -> Broker:
    """That a lease was over is kept from the layer, and the ack is reported as settled all the same."""

    class Liar(ReceiverShell):
        def events(self, events: Any) -> Any:
            class Quiet:
                def lease_lost(self, held: Sequence[Token], reason: str) -> None:
                    """Nobody needs to know."""

                def lost(self, lanes: Sequence[Any], reason: str) -> None:
                    """Nor this."""

                def __getattr__(self, name: str) -> Any:
                    return getattr(events, name)

            return Quiet()

        def told(self, settlements: Sequence[Settlement]) -> None:
            self.settled([one._replace(end=End.SETTLED) if one.end is End.LOST else one for one in settlements])

    return broken(broker, receiver=Liar)


# ---------------------------------------------------------------- leases


def forgets_to_extend(broker: Broker) -> Broker:
    """No lease is renewed."""

    class Forgets(ReceiverShell):
        def extend(self, held: Sequence[Token], seconds: float) -> None:
            """It will last."""

    return broken(broker, receiver=Forgets)


def extends_only_what_is_worked_on(broker: Broker) -> Broker:
    """What waits in the buffer for its turn is not renewed, only what a handler has."""
    consumer = broker.consumer

    def keeps_the_active(*topics: str, **options: Any) -> Any:
        made = consumer(*topics, **options)
        keeper = made._session.keeper
        if keeper is not None:
            keep = keeper.keep

            def without_the_buffer(outstanding: Any) -> None:
                waiting = {delivery._raw.token for delivery in list(made._ready)}
                keep({token: held for token, held in list(outstanding.items()) if token not in waiting})

            keeper.keep = without_the_buffer  # type: ignore[method-assign]
        return made

    broker.consumer = keeps_the_active  # type: ignore[method-assign]
    return broker


def extends_for_dead_handlers(broker: Broker) -> Broker:
    """Leases are renewed whatever maximum was stated, for handlers that will never come back."""
    consumer = broker.consumer

    def for_ever(*topics: str, **options: Any) -> Any:
        return consumer(*topics, **{**options, "max_lease": 1e6})

    broker.consumer = for_ever  # type: ignore[method-assign]
    return broker


def uses_the_first_handle(broker: Broker) -> Broker:
    """What comes again while it is in hand is acked by the handle that it came with first."""

    class First(ReceiverShell):
        def __init__(self, settled: Any) -> None:
            super().__init__(settled)
            self.handles: dict[Token, str] = {}

        def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
            received = super().receive(max_messages, timeout)
            self.handles.update({one.token: one.token.handle for one in received})
            return received

        def settle(
            self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()
        ) -> None:
            for token in acks:
                token.handle = self.handles[token]
            super().settle(acks, nacks, rejects)

    return broken(broker, receiver=First)


def polls_between_messages(broker: Broker) -> Broker:
    """Nothing is polled while a handler works, as in a loop that calls its handler itself."""

    class OneByOne(ReceiverShell):
        def __init__(self, settled: Any) -> None:
            super().__init__(settled)
            self.open: set[Token] = set()

        def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
            if self.open:
                time.sleep(min(timeout, 0.05) or 0.01)
                return ()
            received = super().receive(max_messages, timeout)
            self.open = {one.token for one in received}
            return received

        def settle(
            self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()
        ) -> None:
            super().settle(acks, nacks, rejects)
            self.open -= {*acks, *tokens(nacks)}

    return broken(broker, receiver=OneByOne)


# ---------------------------------------------------------------- giving back


def drops_prefetched_on_close(broker: Broker) -> Broker:
    """What was fetched and nobody looked at is acked when the consumer closes, instead of given back."""

    class Drops(ReceiverShell):
        def settle(
            self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()
        ) -> None:
            dropped = [nack.token for nack in nacks if nack.unstarted]
            super().settle([*acks, *dropped], [nack for nack in nacks if not nack.unstarted], rejects)

    return broken(broker, receiver=Drops)


def swallows_exceptions_and_acks(broker: Broker) -> Broker:
    """A message whose handler failed is acked as if it had not."""

    class Swallows(ReceiverShell):
        def settle(
            self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()
        ) -> None:
            failed = [nack.token for nack in nacks if not nack.unstarted]
            super().settle([*acks, *failed], [nack for nack in nacks if nack.unstarted], rejects)

    return broken(broker, receiver=Swallows)


def dedups_by_body(broker: Broker) -> Broker:
    """Messages of one body are taken for one message: the second is acked and never shown."""

    class ByBody(ReceiverShell):
        def __init__(self, settled: Any) -> None:
            super().__init__(settled)
            self.seen: set[bytes | None] = set()

        def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
            fresh: list[Incoming] = []
            for one in super().receive(max_messages, timeout):
                if one.body in self.seen:
                    super().settle([one.token])
                else:
                    self.seen.add(one.body)
                    fresh.append(one)
            return fresh

    return broken(broker, receiver=ByBody)


# ---------------------------------------------------------------- sending


def ignores_failed_entries(broker: Broker) -> Broker:
    """A batch that was answered is taken to be stored, whatever the answer says of its entries."""

    class Trusting(SenderShell):
        def told(self, outcomes: Sequence[Outcome]) -> None:
            self.outcomes(
                [
                    Confirmed(one.first, one.last) if getattr(one, "cause", "") == Cause.NACKED else one
                    for one in outcomes
                ]
            )

    return broken(broker, sender=Trusting)


def confirmed_on_write(broker: Broker) -> Broker:
    """A send is reported confirmed when it was handed over, before the broker has it."""

    class Hasty(SenderShell):
        def __init__(self, outcomes: Any) -> None:
            super().__init__(outcomes)
            self.taken = 0
            self.waiting: list[tuple[Sequence[Message], float]] = []
            self.wake = threading.Event()
            threading.Thread(target=self._write, name="writes later", daemon=True).start()

        def told(self, outcomes: Sequence[Outcome]) -> None:
            """What the broker says comes too late to matter."""

        def send(self, messages: Sequence[Message], delay: float = 0.0) -> int:
            first, self.taken = self.taken, self.taken + len(messages)
            self.waiting.append((messages, delay))
            self.wake.set()
            self.outcomes([Confirmed(first, self.taken - 1)])
            return len(messages)

        def close(self, timeout: float) -> None:
            until = time.monotonic() + timeout / 2
            while self.waiting and time.monotonic() < until:
                time.sleep(0.01)
            self.inside.close(timeout / 2)

        def _write(self) -> None:
            while self.wake.wait():
                self.wake.clear()
                time.sleep(0.1)
                while self.waiting:
                    messages, delay = self.waiting[0]
                    try:
                        taken = self.inside.send(messages, delay)
                    except BrokerkitError:
                        return
                    if taken == len(messages):
                        self.waiting.pop(0)
                    else:
                        self.waiting[0] = (messages[taken:], delay)

    return broken(broker, sender=Hasty)


def ignores_returns(broker: Broker) -> Broker:
    """What the broker gives back as unroutable is reported confirmed."""

    class Ignores(SenderShell):
        def told(self, outcomes: Sequence[Outcome]) -> None:
            self.outcomes(
                [
                    Confirmed(one.first, one.last) if isinstance(one, Refused) and one.cause == "unroutable" else one
                    for one in outcomes
                ]
            )

    return broken(broker, sender=Ignores)


def retries_with_a_fresh_id(broker: Broker) -> Broker:
    """A message that is sent a second time gets a new id, so that nobody can recognise it."""
    seen: set[str] = set()

    class Fresh(SenderShell):
        def send(self, messages: Sequence[Message], delay: float = 0.0) -> int:
            made = [one._replace(id=new_id()) if one.id in seen else one for one in messages]
            taken: int = self.inside.send(made, delay)
            seen.update(one.id for one in messages[:taken])
            return taken

    return broken(broker, sender=Fresh)


def forgets_that_it_was_forked(broker: Broker) -> Broker:
    """A child process goes on with its parent's objects as if they were its own."""
    generation = _fork.generation

    def same_as_before() -> None:
        _fork.generation = generation

    os.register_at_fork(after_in_child=same_as_before)
    return broker


# ---------------------------------------------------------------- transactions


def offsets_outside_the_transaction(broker: Broker) -> Broker:
    """What was sent is committed first, what was received afterwards, in a transaction of its own."""

    class Twice(TransactorShell):
        def settle(self, acks: Sequence[Token], rejects: Sequence[tuple[Incoming, str]] = ()) -> None:
            self.acks = list(acks)

        def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
            received: Sequence[Incoming] = self.inside.receive(max_messages, timeout)
            return received

        def commit(self) -> None:
            wanted = len(self.acks)
            self.inside.commit()
            self.inside.begin()
            again: list[Token] = []
            until = time.monotonic() + 10.0
            while len(again) < wanted and time.monotonic() < until:
                again += [one.token for one in self.inside.receive(wanted - len(again), 0.5)]
            self.inside.settle(again)
            self.inside.commit()

    return broken(broker, transactor=Twice)


def reads_uncommitted(broker: Broker) -> Broker:
    """Readers are shown what nobody has committed, or ever will."""
    broker.driver._config.client["isolation.level"] = "read_uncommitted"  # type: ignore[attr-defined]
    return broker


def new_id_at_each_start(broker: Broker) -> Broker:
    """Each start of a worker takes a slot of its own, so that nothing its predecessor left open is ended."""

    class Nameless(DriverShell):
        def transactor(self, topics: Any, subscription: Any, *, instance: str | None, **options: Any) -> Any:
            return self.inside.transactor(topics, subscription, instance=None, **options)

    broker.driver = Nameless(broker.driver)  # type: ignore[assignment]
    return broker


def no_rewind_after_abort(broker: Broker) -> Broker:
    """An abort takes back what was sent, and not what was received."""

    class GoesOn(TransactorShell):
        def abort(self) -> None:
            seek, self.inside._seek = self.inside._seek, lambda lane: None
            self.inside.abort()
            self.inside._seek = seek

    return broken(broker, transactor=GoesOn)


def producer_kept_after_an_unknown_commit(broker: Broker) -> Broker:
    """A producer whose connection failed goes on to the next transaction, as the client's own API lets it."""

    class Keeps(TransactorShell):
        def begin(self) -> None:
            self.inside._producer._doubt = ""
            self.inside.begin()

    return broken(broker, transactor=Keeps)
