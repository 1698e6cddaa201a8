"""Messages as rows and back, decoded only when somebody looks."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, overload

from brokerkit.driver import Incoming, Position, Token
from brokerkit.message import NO_HEADERS, Headers, IdSource, Message
from brokerkit_sqlite.schema import MASK, SHIFT, SIDE

COLUMNS = (
    "messages.seq, CAST(id AS BLOB), CAST(key AS BLOB), CAST(content_type AS BLOB), published_at, "
    "CAST(headers AS BLOB), CAST(body AS BLOB)"
)
"""As bytes, so that what is never looked at is never decoded, and no foreign client's text can fail to be read."""

Row = tuple[Any, ...]


def _tagged(value: object) -> dict[str, str]:
    assert isinstance(value, bytes)
    return {"base64": base64.b64encode(value).decode()}


_encode = json.JSONEncoder(separators=(",", ":"), default=_tagged, check_circular=False).encode
_decode = json.JSONDecoder().raw_decode


def encode_headers(headers: Headers) -> str | None:
    """JSON; without the encoder object where all values are text, which is four times as fast."""
    if not headers:
        return None
    pairs: dict[str, Any] = dict(headers)
    try:
        return "{" + ",".join([f"{_quoted(name)}:{_quoted(value)}" for name, value in pairs.items()]) + "}"
    except TypeError:
        return _encode(pairs)


def decode_headers(text: bytes | None) -> Headers:
    """What a foreign client wrote is never an error: what is no JSON object is no headers, odd values are text."""
    if not text:
        return NO_HEADERS
    try:
        found, _ = _decode(text.decode("utf-8", "replace").strip())
    except ValueError:
        return NO_HEADERS
    if not isinstance(found, dict):
        return NO_HEADERS
    return {name: value if type(value) is str else _untagged(value) for name, value in found.items() if name}


def _untagged(value: object) -> str | bytes:
    if isinstance(value, dict) and value.keys() == {"base64"} and isinstance(value["base64"], str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (binascii.Error, ValueError):
            pass  # a foreign client's own object, shown as text
    return _encode(value)


def to_rows(messages: Sequence[Message], first: int, now: int, due: int | None) -> list[Row]:
    """Parameters of INSERT INTO messages, numbered from `first`."""
    seq = first - 1
    return [
        (seq := seq + 1, id, key, content_type, published_at, now, due, encode_headers(headers), body)
        for body, id, key, headers, content_type, published_at, _ in messages
    ]


INSERT = "INSERT INTO messages VALUES (?,?,?,?,?,?,?,?,?)"


class Received(Incoming):
    """One delivery: a row of `messages` as `COLUMNS` lists it, and who it was handed to."""

    __slots__ = ("attempt", "native", "size", "token", "topic")

    lane = None

    def __init__(self, row: Row, token: Token, attempt: int, topic: str) -> None:
        self.native = row
        self.token = token
        self.attempt = attempt
        self.topic = topic
        self.size = len(row[6] or b"")

    @property
    def body(self) -> bytes:  # type: ignore[override]
        return self.native[6] or b""

    @property
    def id(self) -> str:  # type: ignore[override]
        id: bytes | None = self.native[1]
        return id.decode("utf-8", "replace") if id else str(self.position)

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
    def headers(self) -> Headers:  # type: ignore[override]
        return decode_headers(self.native[5])

    @property
    def position(self) -> Position:  # type: ignore[override]
        return position_of(self.topic, self.native[0])


def position_of(topic: str, seq: int) -> Position:
    """Lane 0 is the topic; what was sent to one subscription alone lies in a lane of its own."""
    return Position(topic, "side" if seq >> SHIFT == SIDE else 0, seq & MASK)


class Positions(Sequence[Position]):
    """The positions of messages stored side by side, made when asked for."""

    __slots__ = ("_count", "_first", "_topic")

    def __init__(self, topic: str, first: int, count: int) -> None:
        self._topic = topic
        self._first = first
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Position: ...
    @overload
    def __getitem__(self, index: slice) -> list[Position]: ...
    def __getitem__(self, index: int | slice) -> Position | list[Position]:
        if isinstance(index, slice):
            return [self[number] for number in range(self._count)[index]]
        return position_of(self._topic, self._first + range(self._count)[index])


def size_of(row: Row) -> int:
    return len(row[6] or b"")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")
