"""Messages as SQS carries them: text and at most ten attributes. The published form is docs/reference/wire-format.md.

A body that is text under SQS's rules travels as it is, any other as base64 with an attribute that says so. What does
not fit into attributes (too many, a name or a value that SQS refuses) is packed into one of them, as JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

from brokerkit.driver import Cause, Incoming, Position
from brokerkit.message import NO_HEADERS, Headers, IdSource, Message

MOST_ATTRIBUTES = 10
_ID, _KEY, _TYPE = "brokerkit-id", "brokerkit-key", "brokerkit-content-type"
_AT, _ENCODING, _PACKED = "brokerkit-published-at", "brokerkit-encoding", "brokerkit-headers"
_OURS = frozenset({_ID, _KEY, _TYPE, _AT, _ENCODING, _PACKED})

_NOT_TEXT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What SQS refuses in bodies and values: everything that XML 1.0 does not know."""
_NAME = re.compile(r"(?!(?i:aws\.|amazon\.)|\.)[A-Za-z0-9_.-]{1,256}(?<!\.)")


class Unfit(Exception):
    """This message cannot be sent, and why."""

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


def encoded(message: Message, limit: int, *, binary: bool = True) -> tuple[str, dict[str, Any], int]:
    """Body, attributes, and the size that SQS counts. `binary`: whether attributes may be bytes. Raises Unfit."""
    body, id, key, headers, content_type, published_at, _ = message
    if body is None:
        raise Unfit(Cause.INVALID, "a message without a body is a tombstone, which only Kafka has: send b''")
    attributes: dict[str, Any] = {
        _ID: {"DataType": "String", "StringValue": id},
        _AT: {"DataType": "Number", "StringValue": str(published_at)},
    }
    plain = not _NOT_TEXT.search(id)
    if key is not None:
        attributes[_KEY] = {"DataType": "String", "StringValue": key}
        plain = plain and not _NOT_TEXT.search(key)
    if content_type is not None:
        attributes[_TYPE] = {"DataType": "String", "StringValue": content_type}
        plain = plain and not _NOT_TEXT.search(content_type)
    text, size, encoding = _body(body)
    if encoding is not None:
        attributes[_ENCODING] = {"DataType": "String", "StringValue": encoding}
    if headers or not plain:
        _add(attributes, headers, plain, binary)
    size += sum(_size(name, value) for name, value in attributes.items())
    if size > limit:
        carried = f"{len(body)} bytes" if encoding is None else f"{len(body)} bytes, {len(text)} as {encoding}"
        raise Unfit(
            Cause.TOO_LARGE, f"the message has {size} bytes with its attributes (body: {carried}), {limit} are allowed"
        )
    return text, attributes, size


def _body(body: bytes) -> tuple[str, int, str | None]:
    """As text, its size on the wire, and what was done to it."""
    if not body:
        return "-", 1, "empty"  # SQS takes no empty body
    try:
        text = body.decode()
    except UnicodeDecodeError:
        pass
    else:
        if not _NOT_TEXT.search(text):
            return text, len(body), None
    text = base64.b64encode(body).decode("ascii")
    return text, len(text), "base64"


def _add(attributes: dict[str, Any], headers: Headers, plain: bool, binary: bool) -> None:
    """The headers, each as an attribute where SQS takes all of them, otherwise packed."""
    few = len(attributes) + len(headers) <= MOST_ATTRIBUTES
    if plain and few and all(_fits(name, value, binary) for name, value in headers.items()):
        for name, value in headers.items():
            if isinstance(value, str):
                attributes[name] = {"DataType": "String", "StringValue": value}
            else:
                attributes[name] = {"DataType": "Binary", "BinaryValue": value}
        return
    packed: dict[str, Any] = {
        name: value if isinstance(value, str) else {"base64": base64.b64encode(value).decode("ascii")}
        for name, value in headers.items()
    }
    if not plain:
        for name in (_ID, _KEY, _TYPE):
            if name in attributes:
                packed[name] = attributes.pop(name)["StringValue"]
    attributes[_PACKED] = {"DataType": "String", "StringValue": json.dumps(packed, separators=(",", ":"))}


def _fits(name: str, value: str | bytes, binary: bool) -> bool:
    return (
        len(value) > 0
        and _NAME.fullmatch(name) is not None
        and ".." not in name
        and (not _NOT_TEXT.search(value) if isinstance(value, str) else binary)
        and name not in _OURS
    )


def _size(name: str, attribute: Mapping[str, Any]) -> int:
    value = attribute.get("StringValue")
    length = len(attribute["BinaryValue"]) if value is None else len(value.encode())
    return len(name.encode()) + len(attribute["DataType"]) + length


class SqsIncoming(Incoming):
    """One message as received, decoded when looked at. It is its own token.

    `handle` is the newest receipt handle, `deadline` and `cap` on the receiver's clock: when the lease ends, and when
    no renewal helps any more. `renewal` is the lease in seconds that waits to be asked for.
    """

    __slots__ = (
        "_attempt",
        "_decoded",
        "cap",
        "deadline",
        "handle",
        "native",
        "queue",
        "renewal",
        "size",
        "state",
        "topic",
    )

    def __init__(self, native: Any, topic: str, queue: Any, deadline: float, cap: float) -> None:
        self.native = native
        self.topic = topic
        self.queue = queue
        self.handle: str = native["ReceiptHandle"]
        self.size = len(native.get("Body", ""))
        self.deadline = deadline
        self.cap = cap
        self.renewal = 0
        self.state = "held"
        self._decoded: _Decoded | None = None
        self._attempt = native.get("Attributes", {}).get("ApproximateReceiveCount")

    @property
    def token(self) -> SqsIncoming:
        return self

    @property
    def lane(self) -> None:  # type: ignore[override]
        return None

    @property
    def message_id(self) -> str:
        """SQS's own, the same at every handing-over of one send."""
        return str(self.native.get("MessageId", ""))

    @property
    def decoded(self) -> _Decoded:
        found = self._decoded
        if found is None:
            found = self._decoded = _Decoded(self.native)
        return found

    @property
    def body(self) -> bytes:  # type: ignore[override]
        return self.decoded.body

    @property
    def id(self) -> str:  # type: ignore[override]
        return self.decoded.id or self.message_id

    @property
    def id_source(self) -> IdSource:  # type: ignore[override]
        return "producer" if self.decoded.id else "native"

    @property
    def key(self) -> str | None:  # type: ignore[override]
        return self.decoded.key

    @property
    def all_headers(self) -> Headers:  # type: ignore[override]
        return self.decoded.headers

    @property
    def content_type(self) -> str | None:  # type: ignore[override]
        return self.decoded.content_type

    @property
    def published_at(self) -> int:  # type: ignore[override]
        return self.decoded.published_at or _number(self.native.get("Attributes", {}).get("SentTimestamp")) or 0

    @property
    def position(self) -> Position:  # type: ignore[override]
        return Position(self.topic, self.queue.name, self.message_id)

    @property
    def attempt(self) -> int | None:  # type: ignore[override]
        return _number(self._attempt)


class _Decoded:
    """The parts of a message. What others wrote under our names, and wrongly, stays as it is."""

    __slots__ = ("body", "content_type", "headers", "id", "key", "published_at")

    def __init__(self, native: Any) -> None:
        attributes: Mapping[str, Any] = native.get("MessageAttributes") or {}
        values = {name: _value(attribute) for name, attribute in attributes.items()}
        packed = values.pop(_PACKED, None)
        if packed is not None:
            values.update(_unpacked(packed))
        self.body = _decoded_body(native.get("Body", ""), values.pop(_ENCODING, None))
        self.id = _text(values.pop(_ID, None))
        self.key = _text(values.pop(_KEY, None))
        self.content_type = _text(values.pop(_TYPE, None))
        self.published_at = _number(values.pop(_AT, None))
        self.headers: Headers = values or NO_HEADERS


def _value(attribute: Mapping[str, Any]) -> str | bytes:
    binary = attribute.get("BinaryValue")
    return binary if isinstance(binary, bytes) else str(attribute.get("StringValue", ""))


def _unpacked(text: str | bytes) -> Mapping[str, str | bytes]:
    try:
        packed = json.loads(text)
        return {
            name: value if isinstance(value, str) else base64.b64decode(value["base64"], validate=True)
            for name, value in packed.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {_PACKED: text}


def _decoded_body(text: str, encoding: str | bytes | None) -> bytes:
    if encoding == "empty":
        return b""
    if encoding == "base64":
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            pass  # a foreign program's attribute of our name: the body is what it sent
    return text.encode("utf-8", "surrogatepass")


def _text(value: str | bytes | None) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace") or None
    return value or None


def _number(value: Any) -> int | None:
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError):
        return None
