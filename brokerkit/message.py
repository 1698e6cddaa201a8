"""Message: what is sent and received, the same on every broker."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from brokerkit.errors import ConfigurationError

Headers = Mapping[str, str | bytes]
IdSource = Literal["producer", "native", "none"]

NO_HEADERS: Headers = MappingProxyType({})
RESERVED = "brokerkit-"
"""What the names of brokerkit's own headers begin with."""


class Position(NamedTuple):
    """A native place in a topic. `lane` is the partition or queue, `value` an offset, row or native id.

    `topic_id`: where a session begins, the topic's own id if the broker has one: a topic that is made anew under the
    same name is another one. Empty everywhere else.
    """

    topic: str
    lane: int | str
    value: int | str
    topic_id: str = ""

    def __str__(self) -> str:
        return f"{self.topic}/{self.lane}@{self.value}"


Fields = tuple[bytes | None, str, str | None, Headers, str | None, int, IdSource]
"""What a Message consists of, in its order; a Message is such a tuple."""


class _Fields(NamedTuple):
    body: bytes | None
    id: str
    key: str | None
    headers: Headers
    content_type: str | None
    published_at: int
    id_source: IdSource


class Message(_Fields):
    """One message, immutable.

    - `body`: bytes; None only for a tombstone read from a compacted Kafka topic.
    - `id`: the idempotency key. Set once by the producer; survives redelivery, retries,
      dead-lettering and the hop to another broker.
    - `key`: messages of one key keep their order where the broker orders by key.
    - `headers`: names to `str` or `bytes`.
    - `content_type`: a MIME type, or None.
    - `published_at`: wall clock of the producer, milliseconds since the epoch; 0 when unknown.
    - `id_source`: `producer` when the producer set the id; `native` when it stands for the broker's
      coordinates (it recognises redeliveries, not repeated sends); `none` when nothing recognises
      the message again.

    A tuple underneath, so that making one costs little. The repr shows no body and no header value.
    """

    __slots__ = ()

    def __new__(
        cls,
        body: bytes | None,
        id: str | None = None,
        key: str | None = None,
        headers: Headers | None = None,
        content_type: str | None = None,
        published_at: int | None = None,
        id_source: IdSource = "producer",
    ) -> Message:
        """Raises ConfigurationError when a field has the wrong type; the error names it."""
        message: Message = make(cls, checked(body, id, key, headers, content_type, published_at, id_source))
        return message

    @property
    def headers(self) -> Headers:
        """Read-only. The proxy is made when somebody looks: one object less for each message in flight."""
        found: Headers = self[3]
        return found if type(found) is MappingProxyType else MappingProxyType(found)

    def __repr__(self) -> str:
        size = "tombstone" if self.body is None else f"{len(self.body)} bytes"
        return f"Message(id={self.id!r}, {size}, headers={sorted(self.headers)})"


class Received:
    """A message as received; what a driver makes of one. In a transaction it is settled by the commit, and there is
    nothing to ack."""

    __slots__ = ()

    body: bytes | None
    id: str
    """See `id_source` for what it recognises."""
    id_source: IdSource
    key: str | None
    all_headers: Headers
    """The producer's headers, and brokerkit's own (`brokerkit-…`)."""
    content_type: str | None
    published_at: int
    """Milliseconds since the epoch; 0 when unknown."""
    position: Position | None
    """The broker's own coordinates, where it has any."""
    attempt: int | None
    """1 for the first handing-over; None when the broker does not tell."""
    topic: str
    native: Any
    """The client library's own object, with what the portable fields leave out."""

    @property
    def headers(self) -> Headers:
        """The producer's headers, without brokerkit's own."""
        headers = self.all_headers
        for name in headers:
            if name.startswith(RESERVED):
                return {name: value for name, value in headers.items() if not name.startswith(RESERVED)}
        return headers

    @property
    def message(self) -> Message:
        """The message, apart from this handing-over of it."""
        fields = (self.body, self.id, self.key, self.headers, self.content_type, self.published_at, self.id_source)
        message: Message = make(Message, fields)
        return message

    def __repr__(self) -> str:
        return f"Received(id={self.id!r})"


make: Callable[..., Any] = tuple.__new__
"""`make(Message, fields)` builds a message from fields already known to be right."""


def checked(
    body: bytes | None,
    id: str | None = None,
    key: str | None = None,
    headers: Headers | None = None,
    content_type: str | None = None,
    published_at: int | None = None,
    id_source: IdSource = "producer",
) -> Fields:
    """What is to be sent, with a fresh id where none is given. Raises ConfigurationError when a field has the
    wrong type; the error names it. Each send passes here."""
    if type(body) is not bytes and body is not None:
        body = _bytes(body)
    if id is None:
        id = f"{_ids.prefix}{_ids.next():x}"
    elif type(id) is not str or not id or not id.isascii():
        id = _text("id", id)
    return (
        body,
        id,
        None if key is None else _text("key", key),
        checked_headers(headers) if headers else NO_HEADERS,
        None if content_type is None else _text("content_type", content_type),
        time.time_ns() // 1_000_000 if published_at is None else published_at,
        id_source,
    )


def stamped(fields: Fields) -> Message:
    """The message of these fields, published now if they do not say when."""
    message: Message = make(Message, fields)
    return message if message.published_at else message._replace(published_at=now_ms())


def _bytes(body: object) -> bytes:
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise ConfigurationError(
            f"body must be bytes, not {type(body).__name__}: encode it first, for example json.dumps(value).encode()"
        )
    return bytes(body)


def now_ms() -> int:
    """Wall clock in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class _Ids:
    """Unique ids at the cost of a counter: 96 random bits a process, then a count."""

    def __init__(self) -> None:
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self.prefix = os.urandom(12).hex() + "-"
        self.next = itertools.count().__next__


_ids = _Ids()


def new_id() -> str:
    """A new message id, unique across processes, machines and forks. Thread-safe."""
    return f"{_ids.prefix}{_ids.next():x}"


def _text(name: str, value: object) -> str:
    if type(value) is not str:
        raise ConfigurationError(f"{name} must be a str, not {type(value).__name__}")
    if value.isascii() and value:  # known without looking at it
        return value
    if not value:
        raise ConfigurationError(f"{name} must not be empty: leave it out instead")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name} holds a lone surrogate, which UTF-8 cannot carry") from None
    return value


def checked_headers(headers: Headers) -> Headers:
    """A copy of `headers`; raises ConfigurationError for a name or value of a wrong type."""
    copied = dict(headers)
    for name, value in copied.items():
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"header names are non-empty str, not {name!r}")
        if not isinstance(value, (str, bytes)):
            raise ConfigurationError(
                f"header {name!r} must be str or bytes, not {type(value).__name__}: convert it first"
            )
        if name.startswith(RESERVED):
            raise ConfigurationError(f"header {name!r}: names that begin with brokerkit- are reserved")
    return copied
