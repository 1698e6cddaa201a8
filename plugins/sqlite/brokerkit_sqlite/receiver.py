"""Receiving: leases taken in one transaction, settled in another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from brokerkit.driver import (
    End,
    Incoming,
    Nack,
    Receiver,
    ReceiverEvents,
    Reject,
    Settled,
    Settlement,
    Token,
    Traits,
)
from brokerkit.errors import BrokerkitError, Closed, ConnectionLost
from brokerkit.message import now_ms
from brokerkit_sqlite.engine import settling
from brokerkit_sqlite.engine.handing_out import Limits
from brokerkit_sqlite.engine.rows import position_of
from brokerkit_sqlite.engine.session import Locked
from brokerkit_sqlite.engine.subscriptions import cursor, seek
from brokerkit_sqlite.leases import Leases


class SqliteReceiver(Receiver):
    def __init__(self, leases: Leases, settled: Settled, events: ReceiverEvents, prefetch: Limits) -> None:
        self._leases = leases
        self._session = leases.session
        self._settled = settled
        self._events = events
        self._prefetch = prefetch
        self._held: dict[Token, int] = {}
        """Bytes of what was handed out and is not settled."""
        self._over = False
        self._troubled = False
        groups = list(leases.groups.values())
        self.traits = Traits(
            dead_letters="native",
            attempts=groups[0].attempts,
            dead_letter=groups[0].dead_letter,
            lease_seconds=min(group.lease_ms for group in groups) / 1000,
            renewable=True,
        )
        self._assign()

    def _assign(self) -> None:
        groups = self._leases.groups.values()
        with self._session.reading() as db:
            positions = {group.topic: position_of(group.topic, cursor(db, group)) for group in groups}
        answers = {answer.topic: answer for answer in self._events.assigned([*positions.values()]).values()}
        for group in groups:
            answer = answers.get(group.topic)
            if answer is not None and answer != positions[group.topic]:
                with self._session.transaction() as db:
                    seek(db, group, answer)

    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        room = min(max_messages, self._prefetch.messages - len(self._held))
        size = self._prefetch.size - sum(list(self._held.values()))
        with self._ending():
            if room <= 0 or (size <= 0 and self._held):
                self._leases.wake.wait(timeout)
                self._leases.wake.clear()
                self._session.check()
                return ()
            taken = self._leases.take(Limits(room, size), timeout)
        self._tell_trouble()
        for received in taken:
            self._held[received.token] = received.size
        return taken

    def settle(self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()) -> None:
        self._check()
        tokens = [*acks, *(nack.token for nack in nacks), *(reject.token for reject in rejects)]
        ended = ""
        try:
            with self._session.transaction() as db:
                lost = settling.settle(db, self._leases.groups, acks, nacks, rejects, now_ms())
            settlements = [
                Settlement([token for token in tokens if token not in lost], End.SETTLED),
                Settlement(list(lost), End.LOST, "the lease was over and the message went on"),
            ]
        except Locked as error:
            # Nothing happened, and nothing will: the leases run out and the messages are handed out again.
            settlements = [Settlement(tokens, End.LOST, str(error))]
        except Closed:
            raise
        except BrokerkitError as error:
            ended = str(error)
            settlements = [Settlement(tokens, End.UNKNOWN, ended)]
        self._drop(tokens)
        self._settled([settlement for settlement in settlements if settlement.tokens])
        if ended:
            self._end(ended)

    def extend(self, tokens: Sequence[Token], seconds: float) -> None:
        try:
            with self._ending(), self._session.transaction() as db:
                lost = list(settling.extend(db, tokens, now_ms() + round(seconds * 1000)))
        except Locked:
            return  # tried again at the next third of the lease
        if lost:
            self._drop(lost)
            self._events.lease_lost(lost, "the lease was over and the message was handed out again")

    def close(self, timeout: float) -> None:
        self._leases.close(timeout)

    def _check(self) -> None:
        if self._over:
            raise ConnectionLost("this receiver's session is over")

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Any error ends the session, but for the two after which it is as it was."""
        self._check()
        try:
            yield
        except (Closed, Locked):
            raise
        except BrokerkitError as error:
            self._end(str(error))
            raise ConnectionLost(str(error)) from None

    def _end(self, reason: str) -> None:
        self._over = True
        self._events.disconnected(reason)

    def _drop(self, tokens: Sequence[Token]) -> None:
        for token in tokens:
            self._held.pop(token, None)
        self._leases.wake.set()

    def _tell_trouble(self) -> None:
        since = self._leases.locked_since
        if since is None and self._troubled:
            self._troubled = False
            self._events.recovered()
        elif since is not None and not self._troubled and time.monotonic() - since > self._session.busy_timeout:
            self._troubled = True
            self._events.trouble("another process keeps the file locked")
