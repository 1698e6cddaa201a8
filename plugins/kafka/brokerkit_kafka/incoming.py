"""A message as received, decoded only as far as it is read. Compiled where there is a compiler: each passes here."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any, Final

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE
from mypy_extensions import mypyc_attr

from brokerkit.driver import Position
from brokerkit.message import NO_HEADERS, RESERVED, Headers, IdSource, Message, message_of

_ID: Final = "brokerkit-id"
_CONTENT_TYPE: Final = "brokerkit-content-type"
_BYTES: Final = "brokerkit-bytes"


@mypyc_attr(acyclic=True)
class Place:
    """Where the messages of a lane come from. It knows nothing of the lane, so that what is received makes no cycle."""

    __slots__ = ("base", "name", "native_topic", "partition", "retried", "topic", "topic_id")

    def __init__(self, base: int, name: str, native_topic: str, partition: int, topic: str, topic_id: str) -> None:
        self.base = base
        self.name = name
        self.native_topic = native_topic
        self.partition = partition
        self.topic = topic
        self.topic_id = topic_id
        self.retried = native_topic != topic


@mypyc_attr(acyclic=True)
class KafkaIncoming:
    """A driver's Incoming in all but the base class, which is not compiled.

    `token` is the lane's base and the offset, so that it belongs to one assignment only.

    Foreign bytes: a key or header name that is not UTF-8 keeps its bytes as surrogate escapes; a header value is
    text where it is UTF-8 and bytes otherwise; an absent header value is empty bytes; of a repeated name the last
    one counts. The originals are in `native`.
    """

    __slots__ = ("_attempt", "_place", "native", "size", "token")

    def __init__(self, native: Any, place: Place, token: Any, size: Any) -> None:
        self.native = native
        self.token = token
        self.size = size
        self._place = place
        self._attempt: int | None = None

    @property
    def offset(self) -> int:
        token: int = self.token
        return token - self._place.base

    @property
    def body(self) -> bytes | None:
        body: bytes | None = self.native.value()
        return body

    @property
    def id(self) -> str:
        """See `id_source` for what it recognises."""
        try:
            headers: list[tuple[str, bytes | None]] | None = self.native.headers()
            if headers:
                name, value = headers[0]
                if name == _ID and value:
                    return value.decode()
        except UnicodeDecodeError:
            pass  # a foreign producer's: looked for in full
        return self._own(_ID) or self._native_id()

    @property
    def id_source(self) -> IdSource:
        return "producer" if self._own(_ID) else "native"

    @property
    def key(self) -> str | None:
        key: bytes | None = self.native.key()
        return None if key is None else key.decode("utf-8", "surrogateescape")

    @property
    def headers(self) -> Headers:
        """The producer's headers, without brokerkit's own."""
        return self._decoded(False)

    @property
    def all_headers(self) -> Headers:
        """The producer's headers, and brokerkit's own (`brokerkit-…`)."""
        return self._decoded(True)

    @property
    def content_type(self) -> str | None:
        return self._own(_CONTENT_TYPE)

    @property
    def published_at(self) -> int:
        """Milliseconds since the epoch; 0 when unknown."""
        kind, at = self.native.timestamp()
        return 0 if kind == TIMESTAMP_NOT_AVAILABLE else at

    @property
    def position(self) -> Position:
        return Position(self._place.native_topic, self._place.partition, self.offset)

    @property
    def attempt(self) -> int | None:
        if self._attempt is None and self._place.retried:
            self._attempt = self._number("brokerkit-attempt")
        return self._attempt

    @property
    def lane(self) -> str:
        return self._place.name

    @property
    def topic(self) -> str:
        return self._place.topic

    @property
    def message(self) -> Message:
        """The message, apart from this handing-over of it."""
        return message_of(self)

    @property
    def due(self) -> float:
        """Wall clock in seconds before which it may not be handed out; 0 when at once."""
        return (self._number("brokerkit-due") or 0) / 1000

    def count(self) -> None:
        """The next handing-over is one attempt further."""
        self._attempt = (self.attempt or 1) + 1

    def _raw(self) -> list[tuple[str, bytes | None]]:
        try:
            return self.native.headers() or []
        except UnicodeDecodeError:  # a header name of a foreign producer that the client cannot show
            return []

    def _decoded(self, ours: bool) -> Headers:
        """What users put there, and what brokerkit put there for itself if `ours`; never what became a field."""
        found: dict[str, str | bytes] = {}
        for name, value in self._raw():
            if name.startswith(RESERVED):
                if name == _BYTES:
                    for marked in _names(value):
                        text = found.get(marked)
                        if isinstance(text, str):
                            found[marked] = text.encode()
                    continue
                if not ours or name in (_ID, _CONTENT_TYPE):
                    continue
            if value is None:
                found[name] = b""
            else:
                try:
                    found[name] = value.decode()
                except UnicodeDecodeError:
                    found[name] = value
        return MappingProxyType(found) if found else NO_HEADERS

    def _own(self, name: str) -> str | None:
        for found, value in self._raw():
            if found == name:
                try:
                    return None if value is None else value.decode()
                except UnicodeDecodeError:
                    return None
        return None

    def _number(self, name: str) -> int | None:
        text = self._own(name)
        return int(text) if text is not None and text.isascii() and text.isdigit() else None

    def _native_id(self) -> str:
        return f"{self._place.topic_id}/{self._place.partition}@{self.offset}"

    def __repr__(self) -> str:
        return f"Received(id={self.id!r})"


def _names(text: bytes | None) -> list[str]:
    """The names in a `brokerkit-bytes` header, which follows them; anything may stand there on a shared topic."""
    try:
        names = json.loads(text or b"[]")
    except ValueError:
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
