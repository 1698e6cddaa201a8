"""A message as received, decoded only as far as it is read."""

from __future__ import annotations

import json
from collections.abc import Hashable
from types import MappingProxyType
from typing import TYPE_CHECKING

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE
from confluent_kafka import Message as Native

from brokerkit.driver import Incoming, Position
from brokerkit.message import NO_HEADERS, Headers, IdSource

if TYPE_CHECKING:
    from brokerkit_kafka.lane import Lane

_OWN = ("brokerkit-id", "brokerkit-content-type", "brokerkit-bytes")


class KafkaIncoming(Incoming):
    """`token` is the lane's base and the offset, so that it belongs to one assignment only.

    Foreign bytes: a key or header name that is not UTF-8 keeps its bytes as surrogate escapes; a header value is
    text where it is UTF-8 and bytes otherwise; an absent header value is empty bytes; of a repeated name the last
    one counts. The originals are in `native`.
    """

    __slots__ = ("_attempt", "_headers", "_id", "_lane", "native", "offset", "token")

    native: Native

    def __init__(self, native: Native, lane: Lane, offset: int) -> None:
        self.native = native
        self.offset = offset
        self.token = lane.base + offset
        self._lane = lane
        self._attempt: int | None = None
        self._id: str | None = None
        self._headers: Headers | None = None

    @property
    def body(self) -> bytes | None:  # type: ignore[override]
        return self.native.value()

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.native)

    @property
    def id(self) -> str:  # type: ignore[override]
        found = self._id
        if found is None:
            found = self._id = self._own("brokerkit-id") or self._native_id()
        return found

    @property
    def id_source(self) -> IdSource:  # type: ignore[override]
        return "producer" if self._own("brokerkit-id") else "native"

    @property
    def key(self) -> str | None:  # type: ignore[override]
        key = self.native.key()
        return None if key is None else key.decode("utf-8", "surrogateescape")

    @property
    def headers(self) -> Headers:  # type: ignore[override]
        if self._headers is None:
            self._headers = self._decode()
        return self._headers

    @property
    def content_type(self) -> str | None:  # type: ignore[override]
        return self._own("brokerkit-content-type")

    @property
    def published_at(self) -> int:  # type: ignore[override]
        kind, at = self.native.timestamp()
        return 0 if kind == TIMESTAMP_NOT_AVAILABLE else at

    @property
    def position(self) -> Position:  # type: ignore[override]
        return Position(self._lane.native_topic, self._lane.partition, self.offset)

    @property
    def attempt(self) -> int | None:  # type: ignore[override]
        if self._attempt is None and self._lane.retried:
            text = self._own("brokerkit-attempt")
            if text is not None and text.isascii() and text.isdigit():
                self._attempt = int(text)
        return self._attempt

    @property
    def lane(self) -> Hashable:  # type: ignore[override]
        return self._lane.name

    @property
    def topic(self) -> str:  # type: ignore[override]
        return self._lane.topic

    @property
    def due(self) -> float:
        """Wall clock in seconds before which it may not be handed out; 0 when at once."""
        text = self._own("brokerkit-due")
        return int(text) / 1000 if text is not None and text.isascii() and text.isdigit() else 0.0

    def count(self) -> None:
        """The next handing-over is one attempt further."""
        self._attempt = (self.attempt or 1) + 1

    def _raw(self) -> list[tuple[str, bytes | None]]:
        try:
            return self.native.headers() or []  # type: ignore[return-value]
        except UnicodeDecodeError:  # a header name of a foreign producer that the client cannot show
            return []

    def _own(self, name: str) -> str | None:
        for found, value in self._raw():
            if found == name:
                try:
                    return None if value is None else value.decode()
                except UnicodeDecodeError:
                    return None
        return None

    def _native_id(self) -> str:
        return f"{self._lane.topic_id}/{self._lane.partition}@{self.offset}"

    def _decode(self) -> Headers:
        found: dict[str, str | bytes] = {}
        for name, value in self._raw():
            if name not in _OWN:
                found[name] = _text(value)
        if not found:
            return NO_HEADERS
        marked = self._own("brokerkit-bytes")
        if marked is not None:
            for name in _names(marked):
                text = found.get(name)
                if isinstance(text, str):
                    found[name] = text.encode()
        return MappingProxyType(found)


def _text(value: bytes | None) -> str | bytes:
    if value is None:
        return b""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _names(text: str) -> list[str]:
    """The names in a `brokerkit-bytes` header; anything may stand there on a shared topic."""
    try:
        names = json.loads(text)
    except ValueError:
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
