"""Message: what is sent and received, the same on every broker."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

from brokerkit.fields import NO_HEADERS as NO_HEADERS
from brokerkit.fields import RESERVED as RESERVED
from brokerkit.fields import Fields as Fields
from brokerkit.fields import Headers as Headers
from brokerkit.fields import IdSource as IdSource
from brokerkit.fields import checked as checked
from brokerkit.fields import new_id as new_id
from brokerkit.fields import now_ms as now_ms


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
        return message_of(self)

    def __repr__(self) -> str:
        return f"Received(id={self.id!r})"


make: Callable[..., Any] = tuple.__new__
"""`make(Message, fields)` builds a message from fields already known to be right."""


def message_of(that: Any) -> Message:
    """The message of something that has its fields as attributes."""
    fields = (that.body, that.id, that.key, that.headers, that.content_type, that.published_at, that.id_source)
    message: Message = make(Message, fields)
    return message


def stamped(fields: Fields) -> Message:
    """The message of these fields, published now if they do not say when."""
    message: Message = make(Message, fields)
    return message if message.published_at else message._replace(published_at=now_ms())
