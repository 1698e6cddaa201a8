"""A message as AMQP carries it, and back. The page docs/reference/wire-format.md is this file in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from struct import Struct
from types import MappingProxyType
from typing import Any, NamedTuple

from brokerkit.driver import Incoming
from brokerkit.message import NO_HEADERS, Headers, IdSource, Message, new_id

ID, KEY, CONTENT_TYPE = "brokerkit-id", "brokerkit-key", "brokerkit-content-type"
PUBLISHED_AT, ATTEMPT = "brokerkit-published-at", "brokerkit-attempt"

BOOKKEEPING = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count", "x-opt-")
"""Prefixes of headers that the broker writes itself; they stay in `native`."""


class Unsendable(Exception):
    """This message has no AMQP form; the text says why."""


# ---------------------------------------------------------------- out

_HEAD = Struct(">HxxQH").pack
_LONG = Struct(">I").pack
_PUBLISHED = b"\x16brokerkit-published-atl"
_KEY = b"\x0dbrokerkit-keyS"
_TIMES = Struct(">Q").pack
_FRAME = Struct(">BHI").pack
END = b"\xce"

_CONTENT_TYPE, _HEADERS, _MODE, _MESSAGE_ID, _TIMESTAMP = 1 << 15, 1 << 13, 1 << 12, 1 << 7, 1 << 6


def method_frame(channel: int, index: int, arguments: bytes) -> bytes:
    """A whole method frame; `index` is class and method, 16 bits each."""
    payload = _LONG(index) + arguments
    return _FRAME(1, channel, len(payload)) + payload + END


def publish_method(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """The method frame of basic.publish: the same for all messages of a sender."""
    arguments = b"\x00\x00" + short(exchange) + short(routing_key) + (b"\x01" if mandatory else b"\x00")
    return method_frame(channel, 0x003C0028, arguments)


def content(message: Message, channel: int, mode: bytes, frame_max: int) -> list[bytes]:
    """Content header and body frames of a message; `mode` is the delivery mode's octet. Raises Unsendable.

    Ours and not pika's: encoding BasicProperties takes pika 5 µs, this about 1.5.
    """
    body, id, key, headers, content_type, published_at, _ = message
    if body is None:
        raise Unsendable("RabbitMQ has no tombstones: the body must be bytes")
    table = b"" if published_at <= 0 else _PUBLISHED + _TIMES(published_at)
    if key is not None:
        encoded = key.encode()
        table += _KEY + _LONG(len(encoded)) + encoded
    if headers:
        table += _table(headers)
    flags = _MODE | _MESSAGE_ID
    raw_id = id.encode()
    if len(raw_id) > 255:
        table += _table({ID: id})
        flags = _MODE
    properties = b""
    if content_type is not None:
        raw_type = content_type.encode()
        if len(raw_type) > 255:
            table += _table({CONTENT_TYPE: content_type})
        else:
            flags |= _CONTENT_TYPE
            properties = bytes((len(raw_type),)) + raw_type
    if table:
        flags |= _HEADERS
        properties += _LONG(len(table)) + table
    properties += mode
    if flags & _MESSAGE_ID:
        properties += bytes((len(raw_id),)) + raw_id
    if published_at > 0:
        flags |= _TIMESTAMP
        properties += _TIMES(published_at // 1000)
    size = len(body)
    length = 14 + len(properties)
    if length + 8 > frame_max:
        raise Unsendable(f"headers take {len(properties)} bytes, and the connection's frames hold {frame_max}")
    pieces = [_FRAME(2, channel, length), _HEAD(60, size, flags), properties, END]
    most = frame_max - 8
    if 0 < size <= most:
        pieces += (_FRAME(3, channel, size), body, END)
    elif size:
        for start in range(0, size, most):
            part = body[start : start + most]
            pieces += (_FRAME(3, channel, len(part)), part, END)
    return pieces


def _table(headers: Headers) -> bytes:
    pieces: list[bytes] = []
    for name, value in headers.items():
        raw = name.encode()
        if len(raw) > 255:
            raise Unsendable(f"AMQP header names hold 255 bytes, one has {len(raw)}")
        kind, data = (b"S", value.encode()) if isinstance(value, str) else (b"x", value)
        pieces += (bytes((len(raw),)), raw, kind, _LONG(len(data)), data)
    return b"".join(pieces)


def short(text: str) -> bytes:
    raw = text.encode()
    if len(raw) > 255:
        raise Unsendable(f"AMQP names hold 255 bytes, this has {len(raw)}: {text[:40]!r}…")
    return bytes((len(raw),)) + raw


# ---------------------------------------------------------------- in


class Native(NamedTuple):
    """`delivery.native`: pika's own objects."""

    method: Any
    properties: Any


class RabbitIncoming(Incoming):
    """A delivery; the token is its delivery tag."""

    __slots__ = ("_headers", "_id", "body", "native", "token", "topic")

    def __init__(self, topic: str, native: Native, body: bytes) -> None:
        self.topic = topic
        self.native = native
        self.body = body
        self.token = native[0].delivery_tag
        self._id: str | None = None
        self._headers: Headers | None = None

    position = None
    lane = None

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.body or b"")

    @property
    def id(self) -> str:  # type: ignore[override]
        if self._id is None:
            named = self._named(ID) or text(self.native.properties.message_id)
            self._id = named or new_id()
        return self._id

    @property
    def id_source(self) -> IdSource:  # type: ignore[override]
        return "producer" if self._named(ID) or self.native.properties.message_id else "none"

    @property
    def key(self) -> str | None:  # type: ignore[override]
        return self._named(KEY)

    @property
    def content_type(self) -> str | None:  # type: ignore[override]
        return self._named(CONTENT_TYPE) or text(self.native.properties.content_type) or None

    @property
    def published_at(self) -> int:  # type: ignore[override]
        exact = self._raw(PUBLISHED_AT)
        if isinstance(exact, int):
            return exact
        seconds = self.native.properties.timestamp
        if not seconds:
            return 0
        # Many foreign producers write milliseconds into a field of seconds.
        return int(seconds) if seconds > 100_000_000_000 else int(seconds) * 1000

    @property
    def headers(self) -> Headers:  # type: ignore[override]
        if self._headers is None:
            self._headers = _portable(self.native.properties.headers)
        return self._headers

    @property
    def attempt(self) -> int | None:  # type: ignore[override]
        """What a republished copy says of itself, and the broker's count on top of it."""
        republished = self._named(ATTEMPT)
        first = int(republished) if republished is not None and republished.isdecimal() else 1
        count = self._raw("x-delivery-count")
        if isinstance(count, int):
            return first + count
        acquired = self._raw("x-acquired-count")
        if self.native.method.redelivered and acquired is None:
            return None
        return first

    def _raw(self, name: str) -> Any:
        headers = self.native.properties.headers
        return headers.get(name) if headers else None

    def _named(self, name: str) -> str | None:
        value = self._raw(name)
        return None if value is None else text(portable(value))


def _portable(headers: Mapping[Any, Any] | None) -> Headers:
    """User headers and brokerkit's own; what stands for a field of the message is left out."""
    if not headers:
        return NO_HEADERS
    found: dict[str, str | bytes] = {}
    for name, value in headers.items():
        label = text(name)
        if label not in _FIELDS and not label.startswith(BOOKKEEPING):
            found[label] = portable(value)
    return MappingProxyType(found) if found else NO_HEADERS


_FIELDS = frozenset((ID, KEY, CONTENT_TYPE, PUBLISHED_AT))


def portable(value: Any) -> str | bytes:
    """A header value of any AMQP type as str or bytes, by the published table. Never raises."""
    if isinstance(value, (str, bytes)):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (list, dict)):
        return json.dumps(_plain(value), ensure_ascii=False)
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {text(name): _plain(each) for name, each in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, (datetime, Decimal)):
        return portable(value)
    return value


def text(value: str | bytes | None) -> str:
    """pika gives bytes where a string is not UTF-8."""
    if value is None:
        return ""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
