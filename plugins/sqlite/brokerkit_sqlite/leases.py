"""What a receiver and a transactor share: the subscriptions they take part in, and waiting for something to lease.

Nobody wakes a receiver in another process, so an idle one looks into the file: after 1 ms at first, then less and less
often, up to 20 ms.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing, suppress

from brokerkit.driver import Subscription
from brokerkit.errors import Closed, ConnectionLost
from brokerkit.message import now_ms
from brokerkit_sqlite.engine.handing_out import Lease, Limits, hand_out, next_due
from brokerkit_sqlite.engine.session import Locked, Session
from brokerkit_sqlite.engine.subscriptions import Group, find_group, lease_number, new_session, release
from brokerkit_sqlite.incoming import Received

_SHORTEST, _LONGEST, _GROWTH = 0.001, 0.020, 1.2


class Leases:
    def __init__(
        self, session: Session, lease_seconds: float, topics: Sequence[str], wanted: Subscription, *, counts: bool
    ) -> None:
        self.session = session
        self.wake = threading.Event()
        """Set when there may be something new to do, from another thread of this process."""
        self.locked_since: float | None = None
        self._stopped = False
        self._interval = _SHORTEST
        self._count = itertools.count()
        with session.transaction() as db:
            groups = [find_group(db, topic, wanted, lease_seconds, counts=counts) for topic in topics]
            self.number = new_session(db)
        self.groups = {group.subscription: group for group in groups}
        self._turns = deque(groups)

    def take(self, limits: Limits, timeout: float) -> Sequence[Received]:
        """Leases up to `limits`, as soon as there is something, or nothing after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            self.wake.clear()
            taken = self._look(limits, deadline)
            # Nothing taken of what was due: it was delayed, or spent. More may lie behind it.
            self._interval = min(_LONGEST, self._interval * _GROWTH) if taken is None else _SHORTEST
            left = deadline - time.monotonic()
            if taken or left <= 0:
                return taken or ()
            self.wake.wait(min(left, self._interval))

    def close(self, timeout: float) -> None:
        """Ends the session; what it still leases is given back at once, its attempt counted."""
        self._stopped = True
        self.wake.set()
        deadline = time.monotonic() + timeout
        # Where it cannot be given back, the leases run out by themselves.
        with closing(self.session), suppress(Closed, ConnectionLost), self.session.transaction(deadline) as db:
            for subscription in self.groups:
                release(db, subscription, self.number, now_ms())

    def _look(self, limits: Limits, deadline: float) -> list[Received] | None:
        """What could be leased, or None if nothing is due or the file is locked."""
        self._turns.rotate(-1)
        try:
            with self.session.reading() as db:
                if self._stopped:
                    raise Closed("closed while it waited for messages")
                for group in self._turns:
                    due = next_due(db, group.subscription)
                    if due is None:
                        raise ConnectionLost(f"subscription {group.name!r} of topic {group.topic!r} was deleted")
                    if due <= now_ms():
                        return self._lease(group, limits, deadline)
        except Locked:
            self.locked_since = self.locked_since or time.monotonic()
        return None

    def _lease(self, group: Group, limits: Limits, deadline: float) -> list[Received]:
        number = lease_number(self.number, next(self._count))
        with self.session.transaction(deadline) as db:
            now = now_ms()
            rows = hand_out(db, group, limits, Lease(number, now + group.lease_ms), now)
        self.locked_since = None
        return [Received(row, group, number) for row in rows]
