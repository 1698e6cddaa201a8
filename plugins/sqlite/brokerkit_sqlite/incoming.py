"""A row of the file as a message received, decoded only when somebody looks."""

from __future__ import annotations

from brokerkit.driver import Incoming, Position
from brokerkit.message import Headers, IdSource
from brokerkit_sqlite.engine.rows import Row, decode_headers, position_of, size_of
from brokerkit_sqlite.engine.subscriptions import Group


class Received(Incoming):
    """One delivery: a row of `messages`, and the lease it was handed out under."""

    __slots__ = ("native", "size", "token", "topic")

    lane = None

    def __init__(self, row: Row, group: Group, lease: int) -> None:
        self.native = row
        self.token = (group.subscription, row[0], lease)
        self.topic = group.topic
        self.size = size_of(row)

    @property
    def attempt(self) -> int:  # type: ignore[override]
        return int(self.native[7]) + 1

    @property
    def body(self) -> bytes:  # type: ignore[override]
        return self.native[6] or b""

    @property
    def id(self) -> str:  # type: ignore[override]
        return _text(self.native[1]) or str(self.position)

    @property
    def id_source(self) -> IdSource:  # type: ignore[override]
        return "producer" if self.native[1] else "native"

    @property
    def key(self) -> str | None:  # type: ignore[override]
        return _text(self.native[2])

    @property
    def content_type(self) -> str | None:  # type: ignore[override]
        return _text(self.native[3])

    @property
    def published_at(self) -> int:  # type: ignore[override]
        value = self.native[4]
        return int(value) if isinstance(value, (int, float)) else 0

    @property
    def all_headers(self) -> Headers:  # type: ignore[override]
        return decode_headers(self.native[5])

    @property
    def position(self) -> Position:  # type: ignore[override]
        return position_of(self.topic, self.native[0])


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")
