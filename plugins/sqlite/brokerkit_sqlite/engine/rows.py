"""Messages as rows and back, decoded only when somebody looks."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Sequence
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

from brokerkit.driver import Position
from brokerkit.message import NO_HEADERS, Headers, Message
from brokerkit_sqlite.engine.schema import MASK, SHIFT, SIDE

INSERT = "INSERT INTO messages VALUES (?,?,?,?,?,?,?,?,?)"
COLUMNS = (
    "messages.seq, CAST(id AS BLOB), CAST(key AS BLOB), CAST(content_type AS BLOB), published_at, "
    "CAST(headers AS BLOB), CAST(body AS BLOB)"
)
"""As bytes, so that what is never looked at is never decoded, and no foreign client's text can fail to be read."""

Row = tuple[Any, ...]
"""What `COLUMNS` lists, and behind it how often the message was handed out before."""


def to_rows(messages: Sequence[Message], first: int, now: int, due: int | None) -> list[Row]:
    """Parameters of INSERT, numbered from `first`."""
    seq = first - 1
    return [
        (seq := seq + 1, id, key, content_type, published_at, now, due, encode_headers(headers), body)
        for body, id, key, headers, content_type, published_at, _ in messages
    ]


def within(rows: Iterable[Row], size: int) -> Iterator[Row]:
    """As many as have `size` bytes of bodies together, and at least one."""
    for number, row in enumerate(rows):
        size -= size_of(row)
        if size < 0 and number:
            return
        yield row


def size_of(row: Row) -> int:
    return len(row[6] or b"")


def position_of(topic: str, seq: int) -> Position:
    """Lane 0 is the topic; what was sent to one subscription alone lies in a lane of its own."""
    return Position(topic, "side" if seq >> SHIFT == SIDE else 0, seq & MASK)


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


def _tagged(value: object) -> dict[str, str]:
    assert isinstance(value, bytes)
    return {"base64": base64.b64encode(value).decode()}


def _untagged(value: object) -> str | bytes:
    if isinstance(value, dict) and value.keys() == {"base64"} and isinstance(value["base64"], str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (binascii.Error, ValueError):
            pass  # a foreign client's own object, shown as text
    return _encode(value)


_encode = json.JSONEncoder(separators=(",", ":"), default=_tagged, check_circular=False).encode
_decode = json.JSONDecoder().raw_decode
