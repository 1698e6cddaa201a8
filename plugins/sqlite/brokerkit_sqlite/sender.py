"""Sending: each call is one transaction, and its commit is the confirm."""

from __future__ import annotations

from collections.abc import Sequence

from brokerkit.driver import Cause, Confirmed, Outcome, Outcomes, Position, Refused, Sender, SenderEvents, Unknown
from brokerkit.errors import BrokerkitError, Closed, ConnectionLost, NotFound
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message, now_ms
from brokerkit_sqlite import log
from brokerkit_sqlite.rows import Positions, position_of, to_rows
from brokerkit_sqlite.session import CommitUnknown, DiskFull, Locked, Session
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
        self._topic = topic
        self._subscription = subscription
        self._guarantee = guarantee
        self._outcomes = outcomes
        self._events = events
        self._window = round(settings.dedup_window_seconds * 1000)
        self._max_body = settings.max_body_bytes
        self._next = 0
        self._over = False
        with session.lock:
            if log.find_topic(session.connection, topic) is None:
                raise NotFound(f"topic {topic!r} is not in this file: declare it")

    def send(self, messages: Sequence[Message], delay: float = 0.0) -> int:
        if self._over or self._session.closed:
            raise ConnectionLost("this sender's session is over")
        first = self._next
        self._next += len(messages)
        outcomes, over = self._send(messages, first, delay)
        if self._guarantee is Guarantee.AT_MOST_ONCE:
            outcomes = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        if outcomes:
            self._outcomes(outcomes)
        if over is not None:
            self._over = True
            self._events.disconnected(over)
        return len(messages)

    def close(self, timeout: float) -> None:
        self._session.close()

    def _send(self, messages: Sequence[Message], first: int, delay: float) -> tuple[list[Outcome], str | None]:
        """The outcomes, and why the session is over if it is."""
        refused = self._too_large(messages, first)
        numbers = [number for number in range(first, first + len(messages)) if number not in refused]
        try:
            try:
                outcomes = self._store(messages, numbers, first, delay)
            except (OverflowError, UnicodeError, TypeError):
                refused |= self._invalid(messages, first)
                numbers = [number for number in numbers if number not in refused]
                outcomes = self._store(messages, numbers, first, delay)
        except Locked as error:
            return self._all(refused, numbers, Cause.UNREACHABLE, str(error)), None
        except DiskFull as error:
            return self._all(refused, numbers, Cause.QUEUE_FULL, str(error)), None
        except CommitUnknown as error:
            unknown = [Unknown(number, number, Cause.DISCONNECTED, str(error)) for number in numbers]
            return [*refused.values(), *unknown], str(error)
        except Closed as error:
            return self._all(refused, numbers, Cause.CLOSED, str(error)), None
        except BrokerkitError as error:
            return self._all(refused, numbers, Cause.UNREACHABLE, str(error)), str(error)
        return [*refused.values(), *outcomes], None

    def _store(self, messages: Sequence[Message], numbers: list[int], first: int, delay: float) -> list[Outcome]:
        if not numbers:
            return []
        wanted = messages if len(numbers) == len(messages) else [messages[number - first] for number in numbers]
        now = now_ms()
        due = now + round(delay * 1000) if delay > 0 else None
        with self._session.transaction() as db:
            place = log.find_topic(db, self._topic)
            if place is None:
                return self._refusal(numbers, Cause.TOPIC_MISSING, f"topic {self._topic!r} is not in this file")
            if not place.routable:
                return self._refusal(numbers, Cause.UNROUTABLE, f"topic {self._topic!r} has no subscription")
            if self._subscription is not None:
                row = db.execute(
                    "SELECT subscription FROM subscriptions WHERE topic = ? AND name = ?",
                    (place.topic, self._subscription),
                ).fetchone()
                if row is None:
                    detail = f"topic {self._topic!r} has no subscription {self._subscription!r}"
                    return self._refusal(numbers, Cause.UNROUTABLE, detail)
                seq = log.append_aside(db, row[0], wanted, now, due)
            elif self._guarantee is Guarantee.EXACTLY_ONCE:
                places = log.append_once(db, place, wanted, now, due, self._window)
                positions = [position_of(self._topic, seq) for seq in places]
                return _confirmed(numbers, positions)
            else:
                seq = log.append(db, place, wanted, now, due)
        return _confirmed(numbers, Positions(self._topic, seq, len(numbers)))

    def _too_large(self, messages: Sequence[Message], first: int) -> dict[int, Outcome]:
        most = self._max_body
        refused: dict[int, Outcome] = {}
        for number, message in enumerate(messages, first):
            body = message[0]
            if body is None:
                detail = "a message without a body is a tombstone, which only Kafka has: send b''"
                refused[number] = Refused(number, number, Cause.INVALID, detail)
            elif len(body) > most:
                detail = f"the body has {len(body)} bytes, max_body_bytes is {most}"
                refused[number] = Refused(number, number, Cause.TOO_LARGE, detail)
        return refused

    def _invalid(self, messages: Sequence[Message], first: int) -> dict[int, Outcome]:
        """Those that SQLite cannot hold: numbers over 64 bits, lone surrogates."""
        refused: dict[int, Outcome] = {}
        for number, message in enumerate(messages, first):
            try:
                rows = to_rows([message], 0, 0, None)
                with self._session.lock:
                    self._session.execute("SELECT ?,?,?,?,?,?,?,?,?", rows[0]).fetchone()
            except (OverflowError, UnicodeError, TypeError) as error:
                detail = f"SQLite cannot hold it: {type(error).__name__}"
                refused[number] = Refused(number, number, Cause.INVALID, detail)
        return refused

    def _refusal(self, numbers: Sequence[int], cause: Cause, detail: str, retry: bool = False) -> list[Outcome]:
        return [Refused(number, number, cause, detail, retry) for number in numbers]

    def _all(self, refused: dict[int, Outcome], numbers: list[int], cause: Cause, detail: str) -> list[Outcome]:
        return [*refused.values(), *self._refusal(numbers, cause, detail, True)]


def _confirmed(numbers: list[int], positions: Sequence[Position]) -> list[Outcome]:
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return [Confirmed(numbers[0], numbers[-1], positions)]
    return [Confirmed(number, number, [position]) for number, position in zip(numbers, positions, strict=True)]
