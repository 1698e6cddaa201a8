"""A receipt for each send, and the window of those that have no end yet. Each send passes here, so this is compiled
where there is a C compiler (hatch_build.py)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

from mypy_extensions import mypyc_attr

from brokerkit import _fork
from brokerkit.errors import ConnectionLost, SendError, SendRefused, SendUnknown
from brokerkit.fields import NO_HEADERS, Headers, IdSource, checked, now_ms

if TYPE_CHECKING:
    from brokerkit.message import Message, Position

State = Literal["pending", "confirmed", "refused", "unknown"]
PENDING: Final = "pending"
CONFIRMED: Final = "confirmed"
REFUSED: Final = "refused"
UNKNOWN: Final = "unknown"

_LOOKING: Final = 20.0
"""Looking through all that is in flight for ends out of turn may take one part in so many of the time."""

_waiters: Final = threading.Lock()
_clock: Final = time.monotonic


@mypyc_attr(acyclic=True, free_list_len=1)
class Receipt:
    """How one send ended, or that it has not yet. Thread-safe.

    The garbage collector does not look at it where it is compiled: what it holds must not lead back to it for good.
    """

    state: State = PENDING
    """`pending`, then once and for all `confirmed`, `refused` or `unknown`."""
    attempts: int = 0
    """How often the message was handed to the broker's client."""
    _taken_at: float = 0.0
    """time.monotonic() when the producer took it; its delivery timeout begins there."""
    _delay: float = 0.0
    _on_end: Callable[[Receipt], object] | None = None
    _outcome: Any = None
    """How this attempt failed, as the driver told it."""
    _uncertain: str | None = None
    """Why an attempt may have stored the message."""
    _place: Any = None
    """Where the broker stored it: the fields of a Position, or its value alone beside `topic` and `lane`."""
    _topic: str | None = None
    _lane: Any = None
    _stored: bool = False
    _why: str = ""
    _cause: str = ""
    _waiter: threading.Event | None = None

    def __init__(
        self,
        body: bytes | None,
        id: str,
        key: str | None = None,
        headers: Headers = NO_HEADERS,
        content_type: str | None = None,
        published_at: int = 0,
        id_source: IdSource = "producer",
    ) -> None:
        self.body = body
        self.id = id
        """The message id."""
        self.key = key
        self.headers = headers
        self.content_type = content_type
        self._published: int = published_at
        self.id_source = id_source

    @property
    def published_at(self) -> int:
        """Milliseconds since the epoch. A client that stamps the time itself is left to, and it is computed here."""
        self._stamp()
        return self._published

    @property
    def message(self) -> Message:
        """What is sent."""
        from brokerkit.message import message_of

        return message_of(self)

    @property
    def position(self) -> Position | None:
        """Where the broker stored it, when confirmed and told."""
        from brokerkit.message import Position

        if self.state != CONFIRMED or self._place is None:
            return None
        return Position(*self._place) if self._topic is None else Position(self._topic, self._lane, self._place)

    @property
    def error(self) -> SendError | None:
        """SendRefused or SendUnknown once the send ended so."""
        if self.state == REFUSED:
            return SendRefused(self._why, self._cause)
        return SendUnknown(self._why) if self.state == UNKNOWN else None

    def result(self, timeout: float | None = None) -> Position | None:
        """Waits up to `timeout` seconds (None: until the delivery timeout ends it) and returns the position.

        Raises TimeoutError while the send is pending, SendRefused or SendUnknown once it ended so.
        """
        if self.state == PENDING:
            with _waiters:
                waiter = self._waiter
                if waiter is None:
                    waiter = self._waiter = threading.Event()
            if self.state == PENDING and not waiter.wait(timeout):
                raise TimeoutError(f"message {self.id} is neither confirmed nor refused after {timeout} s")
        error = self.error
        if error is not None:
            raise error
        return self.position

    # What a driver tells of an attempt; the layer ends the receipt afterwards.

    def stored(self, topic: str, lane: Any, place: Any) -> None:
        """`place` is None where the broker tells none."""
        self._topic = topic
        self._lane = lane
        self._place = place
        self._stored = True  # last: it says that the others are there

    def failed(self, outcome: Any) -> None:
        self._outcome = outcome

    # What the layer makes of it.

    def _told(self) -> bool:
        return self._stored or self._outcome is not None

    def _stamp(self) -> None:
        """Notes when it was published, for those that will not ask a clock in that moment."""
        if self._published < 0:
            self._published = now_ms() - int((_clock() - self._taken_at) * 1000)

    def _confirm(self) -> None:
        self.state = CONFIRMED
        if self._waiter is not None:
            self._let_go()

    def _end(self, state: State, why: str, cause: str = "") -> None:
        self._why = why
        self._cause = cause
        self.state = state
        self._let_go()

    def _let_go(self) -> None:
        """After the end: whoever is in `result`. Who comes there now sees the state."""
        with _waiters:
            if self._waiter is not None:
                self._waiter.set()

    def __repr__(self) -> str:
        return f"Receipt(id={self.id!r}, {self.state})"


class Drops:
    """Stands for every message sent at most once: of those, only what was not written is told."""

    def __init__(self) -> None:
        self.outcomes: deque[Any] = deque()

    def stored(self, topic: str, lane: Any, place: Any) -> None: ...

    def failed(self, outcome: Any) -> None:
        self.outcomes.append(outcome)


class Window:
    """What one producer has in flight, and its shortest way to a client that takes messages one by one.

    Two locks, neither held while waiting. `lock` orders sends. `outcomes` lets ends in, which may come from any
    thread, also from inside a send.
    """

    def __init__(
        self,
        max_messages: float,
        max_bytes: float,
        untracked: Receipt | None,
        otherwise: Callable[[Receipt], Receipt],
        refuse: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        """`untracked`: what each send is answered with where nothing is confirmed. `otherwise`: takes what cannot go
        the shortest way. `refuse`: raises when nothing may be sent any more. `lost`: is told that a session is over."""
        self.lock: Any = threading.Lock()
        self._acquire = self.lock.acquire
        self._release = self.lock.release
        self.outcomes: Any = threading.Lock()
        self.post: Any = None
        """The session's Poster.post; None while there is no session, or where the driver takes batches."""
        self.closing = False
        self.backlog: deque[Receipt] = deque()
        """Taken, and not handed to the client yet."""
        self.again: list[Receipt] = []
        """Failed, and to be put before the backlog."""
        self.posted: deque[Receipt] = deque()
        """Handed to the client one by one."""
        self._append = self.posted.append
        self._popleft = self.posted.popleft
        self.ended: deque[Receipt] = deque()
        """Whose `on_end` is to be called."""
        self.drops: Drops | None = None if untracked is None else Drops()
        self.bytes_in: int = 0
        self.bytes_out: int = 0
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._untracked = untracked
        self._otherwise = otherwise
        self._refuse = refuse
        self._lost = lost
        self._born: int = _fork.generation
        self._due: int = 0
        self._look_at = 0.0

    def send(
        self,
        body: object,
        *,
        id: object = None,
        key: object = None,
        headers: object = None,
        content_type: object = None,
        delay: Any = 0.0,
        on_end: Callable[[Receipt], object] | None = None,
    ) -> Receipt:
        """Producer.send: handed to the client, or else put behind what waits."""
        if self.closing or self._born != _fork.generation:
            self._refuse()
        made = checked(body, id, key, headers, content_type, -1)
        receipt = Receipt(made[0], made[1], made[2], made[3], made[4], made[5])
        receipt._taken_at = _clock()
        if on_end is not None:
            receipt._on_end = on_end
        if delay:
            receipt._delay = delay
        elif self.post is not None:
            self._acquire()
            try:
                if self.post is not None and self.is_clear(len(self.posted)):
                    size = 0 if receipt.body is None else len(receipt.body)
                    self.bytes_in += size
                    if self.give(receipt):
                        return receipt if self._untracked is None else self._untracked
                    self.bytes_in -= size
            finally:
                self._release()
        return self._otherwise(receipt)

    def is_clear(self, in_flight: int) -> bool:
        """Whether one more may go straight to the client, when so many of its messages have no end. Under `lock`."""
        return (
            not self.backlog
            and not self.again
            and in_flight < self._max_messages
            and self.bytes_in - self.bytes_out < self._max_bytes
            and not self.closing
        )

    def give(self, receipt: Receipt) -> bool:
        """Hands one to the client; False when it takes no more for now. A message without a time is published now.
        Under `lock`."""
        receipt.attempts += 1
        drops = self.drops
        posted: Any = receipt if drops is None else drops
        if drops is None:
            self._append(receipt)
        try:
            post = self.post
            if post is not None and post(
                posted,
                receipt.body,
                receipt.id,
                receipt.key,
                receipt.headers,
                receipt.content_type,
                max(receipt._published, 0),
            ):
                if drops is not None:
                    self.leave(receipt)
                return True
        except ConnectionLost as error:
            self._lost(str(error))
        receipt.attempts -= 1  # as if never offered
        if drops is None:
            with self.outcomes:
                self.posted.remove(receipt)
        return False

    def sweep(self, told: int) -> list[Receipt]:
        """Ends the receipts of which the driver told, `told` of them since the last time: those that are confirmed.
        Returns the others. Under `outcomes`."""
        failed: list[Receipt] = []
        posted = self.posted
        due = self._due + told
        popleft = self._popleft
        while posted:
            receipt: Receipt = popleft()
            if not receipt._told():
                posted.appendleft(receipt)
                break
            due -= 1
            self._end(receipt, failed)
        if due > 0 and posted:
            due = self._look_through(due, failed)
        self._due = due if due > 0 and posted else 0
        return failed

    def _look_through(self, due: int, failed: list[Receipt]) -> int:
        """Lanes are answered at their own pace: for those that came before their turn."""
        began = _clock()
        if began < self._look_at:
            return due
        posted = self.posted
        for _ in range(len(posted)):
            receipt = posted.popleft()
            if receipt._told():
                self._end(receipt, failed)
            else:
                posted.append(receipt)
        now = _clock()
        self._look_at = now + _LOOKING * (now - began)
        return 0

    def _end(self, receipt: Receipt, failed: list[Receipt]) -> None:
        if receipt._outcome is not None:
            failed.append(receipt)
            return
        self.confirm(receipt)

    def confirm(self, receipt: Receipt) -> None:
        """Ends it confirmed. Under `outcomes`."""
        self.leave(receipt)
        receipt._confirm()
        if receipt._on_end is not None:
            self.ended.append(receipt)

    def leave(self, receipt: Receipt) -> None:
        """It counts no more towards the bound on bytes."""
        if receipt.body is not None:
            self.bytes_out += len(receipt.body)

    def clear(self) -> tuple[list[Receipt], list[Receipt]]:
        """After a session: those that failed, and those of which the driver never told. Under `outcomes`."""
        self._look_at = 0.0
        failed = self.sweep(1)
        left = list(self.posted)
        self.posted.clear()
        self._due = 0
        return failed, left
