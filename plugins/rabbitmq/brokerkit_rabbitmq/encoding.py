"""A message as AMQP carries it, and back. The page docs/reference/wire-format.md is this file in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from struct import Struct
from struct import error as StructError
from types import MappingProxyType
from typing import Any, NamedTuple

import pika.exceptions
from pika import spec
from pika.data import decode_table

from brokerkit.driver import Cause, Incoming
from brokerkit.message import NO_HEADERS, Headers, IdSource, Message, new_id

ID, KEY, CONTENT_TYPE = "brokerkit-id", "brokerkit-key", "brokerkit-content-type"
PUBLISHED_AT, ATTEMPT = "brokerkit-published-at", "brokerkit-attempt"
DEAD_REASON, UNREADABLE = "brokerkit-dead-reason", "brokerkit-unreadable"

BOOKKEEPING = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count", "x-opt-")
"""Prefixes of headers that the broker writes itself; they stay in `native`."""


class Unsendable(Exception):
    """This message has no AMQP form, or the broker would not take it; the text says why."""

    def __init__(self, why: str, cause: Cause = Cause.INVALID) -> None:
        super().__init__(why)
        self.cause = cause


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
    """A delivery, decoded when somebody looks; the token is its delivery tag."""

    __slots__ = ("_fields", "_header", "_headers", "_id", "_method", "_table", "body", "redelivered", "token", "topic")

    position = None
    lane = None

    def __init__(self, topic: str, token: int, redelivered: bool, method: bytes, header: bytes, body: bytes) -> None:
        self.topic = topic
        self.token = token
        self.redelivered = redelivered
        self.body = body
        self._method = method
        self._header = header
        self._fields: tuple[bytes, bytes, str, int] | None = None
        self._table: Mapping[Any, Any] | None = None
        self._headers: Headers | None = None
        self._id: str | None = None

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.body or b"")

    @property
    def id(self) -> str:  # type: ignore[override]
        if self._id is None:
            self._id = self._named(ID) or self._parsed()[2] or new_id()
        return self._id

    @property
    def id_source(self) -> IdSource:  # type: ignore[override]
        return "producer" if self._parsed()[2] or self._named(ID) else "none"

    @property
    def key(self) -> str | None:  # type: ignore[override]
        return self._named(KEY)

    @property
    def content_type(self) -> str | None:  # type: ignore[override]
        return self._named(CONTENT_TYPE) or text(self._parsed()[0]) or None

    @property
    def published_at(self) -> int:  # type: ignore[override]
        _, table, _, seconds = self._parsed()
        exact = _READ_LONG(table, 24)[0] if table and _ours_alone(table) else self._tabled().get(PUBLISHED_AT)
        if isinstance(exact, int):
            return int(exact)
        # Many foreign producers write milliseconds into a field of seconds.
        return seconds if seconds > 100_000_000_000 else seconds * 1000

    @property
    def all_headers(self) -> Headers:  # type: ignore[override]
        if self._headers is None:
            self._headers = NO_HEADERS if _ours_alone(self._parsed()[1]) else _portable(self._tabled())
        return self._headers

    @property
    def attempt(self) -> int | None:  # type: ignore[override]
        """What a republished copy says of itself, and the broker's count on top of it."""
        republished = self._named(ATTEMPT)
        first = int(republished) if republished is not None and republished.isdecimal() else 1
        if not self.redelivered:
            return first
        count = self._tabled().get("x-delivery-count")
        if isinstance(count, int):
            return first + int(count)
        return first if "x-acquired-count" in self._tabled() else None

    @property
    def native(self) -> Native:
        properties = spec.BasicProperties()
        try:
            properties.decode(self._header[12:])
        except _UNREADABLE:
            properties = spec.BasicProperties(headers=dict(self._tabled()))
        return Native(spec.Basic.Deliver().decode(self._method), properties)

    def _parsed(self) -> tuple[bytes, bytes, str, int]:
        """Content type, header table, message id and timestamp as they came."""
        if self._fields is None:
            self._fields = _properties(self._header)
        return self._fields

    def _tabled(self) -> Mapping[Any, Any]:
        """The header table; one that pika cannot read stands under one name."""
        if self._table is None:
            raw = self._parsed()[1]
            try:
                self._table = decode_table(_LONG(len(raw)) + raw, 0)[0] if raw else {}
            except _UNREADABLE:
                self._table = {UNREADABLE: raw}
        return self._table

    def _named(self, name: str) -> str | None:
        if _ours_alone(self._parsed()[1]):
            return None
        value = self._tabled().get(name)
        return None if value is None else text(portable(value))


def sent_id(header: bytes) -> str:
    """The message id in a content header, empty where the producer gave none."""
    incoming = RabbitIncoming("", 0, False, b"", header, b"")
    return incoming.id if incoming.id_source == "producer" else ""


_UNREADABLE = (ValueError, OverflowError, OSError, IndexError, StructError, pika.exceptions.AMQPError)
_READ_LONG = Struct(">q").unpack_from
_READ_FLAGS = Struct(">H").unpack_from
_READ_SIZE = Struct(">I").unpack_from


def _ours_alone(table: bytes) -> bool:
    """No table, or one with nothing but `brokerkit-published-at`: most messages."""
    return not table or (len(table) == 32 and table.startswith(_PUBLISHED))


def _properties(header: bytes) -> tuple[bytes, bytes, str, int]:
    flags = _READ_FLAGS(header, 12)[0]
    offset = 14
    content_type = table = b""
    message_id = ""
    timestamp = 0
    if flags & _CONTENT_TYPE:
        content_type = header[offset + 1 : offset + 1 + header[offset]]
        offset += 1 + header[offset]
    if flags & 0x4000:
        offset += 1 + header[offset]
    if flags & _HEADERS:
        size = _READ_SIZE(header, offset)[0]
        table = header[offset + 4 : offset + 4 + size]
        offset += 4 + size
    offset += (flags >> 12 & 1) + (flags >> 11 & 1)
    if flags & 0x0700:
        for flag in (0x0400, 0x0200, 0x0100):
            if flags & flag:
                offset += 1 + header[offset]
    if flags & _MESSAGE_ID:
        message_id = header[offset + 1 : offset + 1 + header[offset]].decode("utf-8", "backslashreplace")
        offset += 1 + header[offset]
    if flags & _TIMESTAMP:
        timestamp = int(_READ_LONG(header, offset)[0])
    return content_type, table, message_id, max(timestamp, 0)


def _portable(headers: Mapping[Any, Any] | None) -> Headers:
    """User headers and brokerkit's own; what stands for a field of the message is left out."""
    if not headers:
        return NO_HEADERS
    found: dict[str, str | bytes] = {}
    for name, value in headers.items():
        label = text(name)
        if label not in _FIELDS and not label.startswith(BOOKKEEPING):
            found[label] = portable(value)
    reason = _dead_by_broker(headers)
    if reason is not None:
        found.setdefault(DEAD_REASON, reason)
    return MappingProxyType(found) if found else NO_HEADERS


def _dead_by_broker(headers: Mapping[Any, Any]) -> str | None:
    """Why the broker itself dead-lettered it, as after too many returns. A delay that is over is no death."""
    deaths = headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths else None
    reason = last.get("reason") if isinstance(last, dict) else None
    return None if reason in (None, "expired") else f"dead-lettered by RabbitMQ: {text(reason)}"


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
