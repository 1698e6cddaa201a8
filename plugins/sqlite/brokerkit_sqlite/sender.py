"""Sending: each call is one transaction, and its commit is the confirm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from brokerkit.driver import Cause, Confirmed, Outcome, Outcomes, Position, Refused, Sender, SenderEvents, Unknown
from brokerkit.errors import BrokerkitError, Closed, ConnectionLost, NotFound
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message, now_ms
from brokerkit_sqlite.engine import storing
from brokerkit_sqlite.engine.rows import position_of
from brokerkit_sqlite.engine.session import CommitUnknown, DiskFull, Locked, Session
from brokerkit_sqlite.settings import SqliteSettings


class SqliteSender(Sender):
    def __init__(
        self,
        session: Session,
        settings: SqliteSettings,
        topic: str,
        subscription: str | None,
        guarantee: Guarantee,
        outcomes: Outcomes,
        events: SenderEvents,
    ) -> None:
        self._session = session
        self._settings = settings
        self._topic = topic
        self._subscription = subscription
        self._guarantee = guarantee
        self._outcomes = outcomes
        self._events = events
        self._next = 0
        self._over = ""
        with session.reading() as db, suppress(storing.Unroutable):
            storing.find_routable(db, topic)

    def send(self, messages: Sequence[Message], delay: float = 0.0) -> int:
        if self._over or self._session.closed:
            raise ConnectionLost("this sender's session is over")
        first = self._next
        self._next += len(messages)
        outcomes = self._send(messages, first, delay)
        if self._guarantee is Guarantee.AT_MOST_ONCE:
            outcomes = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        if outcomes:
            self._outcomes(outcomes)
        if self._over:
            self._events.disconnected(self._over)
        return len(messages)

    def close(self, timeout: float) -> None:
        self._session.close()

    def _send(self, messages: Sequence[Message], first: int, delay: float) -> list[Outcome]:
        """Where one message cannot be stored its neighbours are: by halves, until it stands alone."""
        last = first + len(messages) - 1
        try:
            return [Confirmed(first, last, self._store(messages, delay))]
        except BrokerkitError as error:
            if isinstance(error, storing.Unfit) and first < last:
                half = len(messages) // 2
                return [*self._send(messages[:half], first, delay), *self._send(messages[half:], first + half, delay)]
            cause, retry = _CAUSES.get(type(error), (None, True))
            if cause is None:
                self._over = str(error)
            if isinstance(error, CommitUnknown):
                return [Unknown(first, last, Cause.DISCONNECTED, str(error))]
            return [Refused(first, last, cause or Cause.UNREACHABLE, str(error), retry)]

    def _store(self, messages: Sequence[Message], delay: float) -> list[Position]:
        storing.check_bodies(messages, self._settings.max_body_bytes)
        now = now_ms()
        due = now + round(delay * 1000) if delay > 0 else None
        with self._session.transaction() as db:
            topic = storing.find_routable(db, self._topic)
            if self._subscription is not None:
                first = storing.append_aside(db, self._topic, self._subscription, messages, now, due)
            elif self._guarantee is Guarantee.EXACTLY_ONCE:
                window = round(self._settings.dedup_window_seconds * 1000)
                return [
                    position_of(self._topic, seq) for seq in storing.append_once(db, topic, messages, now, due, window)
                ]
            else:
                first = storing.append(db, topic, messages, now, due)
        return [position_of(self._topic, seq) for seq in range(first, first + len(messages))]


_CAUSES: Mapping[type[BrokerkitError], tuple[Cause, bool]] = {
    storing.Unfit: (Cause.INVALID, False),
    storing.TooLarge: (Cause.TOO_LARGE, False),
    NotFound: (Cause.TOPIC_MISSING, False),
    storing.Unroutable: (Cause.UNROUTABLE, False),
    Locked: (Cause.UNREACHABLE, True),
    DiskFull: (Cause.QUEUE_FULL, True),
    Closed: (Cause.CLOSED, True),
}
"""Why nothing was stored, with the session still good, and whether to try again. Any other error ends the session."""
