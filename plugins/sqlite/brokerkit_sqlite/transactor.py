"""Transactions: what is received is leased at once, what is sent and settled is kept here until `commit`, which does
all of it in one SQL transaction, or nothing when a lease is gone. So nobody else waits while the user works, and a
killed owner's messages come back when its leases run out, or at once to a successor of the same instance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from brokerkit.driver import Cause, Incoming, Nack, Reject, Token, Transactor
from brokerkit.errors import LeaseLost, SendRefused
from brokerkit.message import Fields, Message, now_ms, stamped
from brokerkit_sqlite.engine.handing_out import Limits
from brokerkit_sqlite.engine.settling import settle
from brokerkit_sqlite.engine.storing import TooLarge, Unfit, append, check_bodies, find_routable
from brokerkit_sqlite.engine.subscriptions import owner, take_over
from brokerkit_sqlite.leases import Leases


class SqliteTransactor(Transactor):
    def __init__(self, leases: Leases, instance: str | None, max_body: int) -> None:
        self._leases = leases
        self.longest = min(group.lease_ms for group in leases.groups.values()) / 1000
        self._session = leases.session
        self._instance = instance
        self._max_body = max_body
        if instance is not None:
            with self._session.transaction() as db:
                for subscription in leases.groups:
                    take_over(db, subscription, instance, leases.number, now_ms())
        self._forget()

    def begin(self) -> None:
        self._session.check()
        self._forget()

    def receive(self, max_messages: int, timeout: float) -> Sequence[Incoming]:
        taken = self._leases.take(Limits(max_messages, 1 << 62), timeout)
        self._received += [received.token for received in taken]
        return taken

    def send(self, topic: str, fields: Fields) -> None:
        message = stamped(fields)
        try:
            check_bodies([message], self._max_body)
        except Unfit as error:
            cause = Cause.TOO_LARGE if isinstance(error, TooLarge) else Cause.INVALID
            raise SendRefused(str(error), cause) from None
        with self._session.reading() as db:
            find_routable(db, topic)
        self._sends.append((topic, message))

    def settle(self, acks: Sequence[Token], rejects: Sequence[tuple[Incoming, str]] = ()) -> None:
        self._session.check()
        self._acks += acks
        self._rejects += [Reject(incoming.token, reason) for incoming, reason in rejects]

    def commit(self) -> None:
        settled = {*self._acks, *(reject.token for reject in self._rejects)}
        now = now_ms()
        with self._session.transaction() as db:
            if self._instance is not None:
                for subscription in self._leases.groups:
                    if owner(db, subscription, self._instance) != self._leases.number:
                        raise LeaseLost(f"a younger owner of instance {self._instance!r} has taken over")
            if settle(db, self._leases.groups, self._acks, (), self._rejects, now):
                raise LeaseLost("a lease of this transaction was over, and its message went on: nothing was committed")
            settle(db, self._leases.groups, (), _unstarted(set(self._received) - settled), (), now)
            for topic, message in self._sends:
                append(db, find_routable(db, topic), [message], now)
        self._forget()

    def abort(self) -> None:
        received = self._received
        self._forget()
        with self._session.transaction() as db:
            settle(db, self._leases.groups, (), _unstarted(received), (), now_ms())

    def close(self, timeout: float) -> None:
        self._leases.close(timeout)

    def _forget(self) -> None:
        self._received: list[Token] = []
        self._sends: list[tuple[str, Message]] = []
        self._acks: list[Token] = []
        self._rejects: list[Reject] = []


def _unstarted(tokens: Iterable[Token]) -> list[Nack]:
    return [Nack(token, 0.0, True) for token in tokens]
