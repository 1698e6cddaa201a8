"""A message as received, decoded only as far as it is read."""

from __future__ import annotations

import json
from collections.abc import Hashable
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE
from confluent_kafka import Message as Native

from brokerkit.driver import Incoming, Position
from brokerkit.message import NO_HEADERS, Headers, IdSource

if TYPE_CHECKING:
    from brokerkit_kafka.lane import Lane

_OWN = frozenset({"brokerkit-id", "brokerkit-content-type", "brokerkit-bytes"})


class KafkaIncoming(Incoming):
    """`token` is the lane's base and the offset, so that it belongs to one assignment only. Made empty and filled in by
    who fetched it: a call of `__init__` costs as much as the rest, and each message pays it.

    Foreign bytes: a key or header name that is not UTF-8 keeps its bytes as surrogate escapes; a header value is
    text where it is UTF-8 and bytes otherwise; an absent header value is empty bytes; of a repeated name the last
    one counts. The originals are in `native`.
    """

    __slots__ = ("_attempt", "_lane", "native", "size", "token")

    native: Native
    size: int
    token: int
    _lane: Lane
    _attempt: int | None

    @property
    def offset(self) -> int:
        offset: int = self.token - self._lane.base
        return offset

    @property
    def body(self) -> bytes | None:  # type: ignore[override]
        return self.native.value()

    @property
    def id(self) -> str:  # type: ignore[override]
        try:
            headers: Any = self.native.headers()
            name, value = headers[0]
            if name == "brokerkit-id" and value:
                return str(value.decode())
        except (TypeError, IndexError, UnicodeDecodeError):
            pass  # a foreign producer's: looked for in full
        return self._own("brokerkit-id") or self._native_id()

    @property
    def id_source(self) -> IdSource:  # type: ignore[override]
        return "producer" if self._own("brokerkit-id") else "native"

    @property
    def key(self) -> str | None:  # type: ignore[override]
        key = self.native.key()
        return None if key is None else key.decode("utf-8", "surrogateescape")

    @property
    def all_headers(self) -> Headers:  # type: ignore[override]
        found: dict[str, str | bytes] = {}
        for name, value in self._raw():
            if name not in _OWN:
                try:
                    found[name] = value.decode()  # type: ignore[union-attr]
                except AttributeError:
                    found[name] = b""
                except UnicodeDecodeError:
                    found[name] = value  # type: ignore[assignment]
            elif name == "brokerkit-bytes":
                for marked in _names(value):
                    text = found.get(marked)
                    if isinstance(text, str):
                        found[marked] = text.encode()
        return MappingProxyType(found) if found else NO_HEADERS

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
            self._attempt = self._number("brokerkit-attempt")
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
        return (self._number("brokerkit-due") or 0) / 1000

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

    def _number(self, name: str) -> int | None:
        text = self._own(name)
        return int(text) if text is not None and text.isascii() and text.isdigit() else None

    def _native_id(self) -> str:
        return f"{self._lane.topic_id}/{self._lane.partition}@{self.offset}"


def _names(text: bytes | None) -> list[str]:
    """The names in a `brokerkit-bytes` header, which follows them; anything may stand there on a shared topic."""
    try:
        names = json.loads(text or b"[]")
    except ValueError:
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
