"""Messages as Pub/Sub carries them: data, attributes of text, an ordering key. See docs/reference/wire-format.md."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from brokerkit.driver import Cause, Incoming, Position
from brokerkit.message import Headers, IdSource, Message
from brokerkit_pubsub.link import PubsubMessage

MAX_REQUEST = 10_000_000
"""Bytes of a publish request that the service takes."""
_OVERHEAD = 64
MAX_BODY = MAX_REQUEST - 128 * 1024
"""The rest is for attributes, of which there may be 100 KiB, and the request's own fields."""
_MAX_ATTRIBUTES, _MAX_NAME, _MAX_VALUE = 100, 256, 1024
_ID, _KEY, _TYPE, _AT = "brokerkit-id", "brokerkit-key", "brokerkit-content-type", "brokerkit-published-at"
_PACKED = "brokerkit-headers-"
_OWN = frozenset((_ID, _KEY, _TYPE, _AT))


class Unencodable(Exception):
    """This message cannot be carried; `cause` says why by name."""

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


def encoded(message: Message, ordering: bool) -> Any:
    """Raises Unencodable."""
    body, id, key, headers, content_type, published_at, _ = message
    if body is None:
        raise Unencodable(Cause.INVALID, "Pub/Sub has no tombstones: body must be bytes")
    if len(body) > MAX_BODY:
        raise Unencodable(Cause.TOO_LARGE, f"the body has {len(body)} bytes, too large: {MAX_BODY} are the most")
    attributes = {_ID: id, _AT: str(published_at)}
    if content_type is not None:
        attributes[_TYPE] = content_type
    if key is not None and not ordering:
        attributes[_KEY] = key
    for name in (_ID, _TYPE, _KEY):
        if name in attributes and not _fits(attributes[name]):
            raise Unencodable(Cause.INVALID, f"{name.removeprefix('brokerkit-')} is longer than {_MAX_VALUE} bytes")
    if headers:
        _add_headers(attributes, headers)
    if key is None or not ordering:
        return PubsubMessage(data=body, attributes=attributes)
    if not _fits(key):
        raise Unencodable(Cause.INVALID, f"key is longer than {_MAX_VALUE} bytes")
    return PubsubMessage(data=body, attributes=attributes, ordering_key=key)


def size_of(message: Any) -> int:
    """Bytes that it takes in a request, at most."""
    size: int = message.ByteSize() + _OVERHEAD
    return size


class PubsubIncoming(Incoming):
    """One delivery. It is its own token: ack ids of some servers repeat, objects do not."""

    __slots__ = ("_attributes", "_headers", "answered", "asked", "body", "deadline", "native", "place", "size", "topic")

    lane = None

    def __init__(self, native: Any, topic: str, place: str, deadline: float) -> None:
        message = native.message
        self.native = native
        self.topic = topic
        self.place = place
        """The subscription's whole name."""
        self.deadline = deadline
        """time.monotonic() until which the lease is ours."""
        self.asked = False
        """An ack was sent before, and its answer did not come."""
        self.body = message.data
        self.size = len(self.body)
        self._attributes = message.attributes
        self._headers: Headers | None = None

    @property
    def token(self) -> PubsubIncoming:
        return self

    @property
    def id(self) -> str:  # type: ignore[override]
        id: str = self._attributes.get(_ID) or self.native.message.message_id
        return id

    @property
    def id_source(self) -> IdSource:  # type: ignore[override]
        return "producer" if self._attributes.get(_ID) else "native"

    @property
    def key(self) -> str | None:  # type: ignore[override]
        return self.native.message.ordering_key or self._attributes.get(_KEY) or None

    @property
    def content_type(self) -> str | None:  # type: ignore[override]
        return self._attributes.get(_TYPE) or None

    @property
    def published_at(self) -> int:  # type: ignore[override]
        """The producer's clock; for a foreign message the service's."""
        text = self._attributes.get(_AT, "")
        if text.isascii() and text.isdigit() and len(text) < 18:
            return int(text)
        time = self.native.message.publish_time
        milliseconds: int = time.seconds * 1000 + time.nanos // 1_000_000
        return milliseconds

    @property
    def position(self) -> Position | None:  # type: ignore[override]
        return position(self.topic, self.native.message.message_id)

    @property
    def attempt(self) -> int | None:  # type: ignore[override]
        """Pub/Sub counts where the subscription has a dead-letter policy."""
        return self.native.delivery_attempt or None

    @property
    def all_headers(self) -> Headers:  # type: ignore[override]
        if self._headers is None:
            self._headers = _headers(self._attributes)
        return self._headers


def position(topic: str, message_id: str) -> Position:
    return Position(topic, topic, message_id)


def _add_headers(attributes: dict[str, str], headers: Headers) -> None:
    """Text that fits becomes an attribute of its own; everything else goes into a JSON object, cut into pieces."""
    packed: dict[str, str | dict[str, str]] = {}
    room = _MAX_ATTRIBUTES - len(attributes) - 20
    for name, value in headers.items():
        plain = isinstance(value, str) and room > 0 and _fits(value) and _may_stand(name)
        if plain:
            attributes[name] = value  # type: ignore[assignment]
            room -= 1
        else:
            packed[name] = value if isinstance(value, str) else {"base64": base64.b64encode(value).decode()}
    if packed:
        text = json.dumps(packed, separators=(",", ":"))
        for number, start in enumerate(range(0, len(text), _MAX_VALUE)):
            attributes[f"{_PACKED}{number}"] = text[start : start + _MAX_VALUE]
    if len(attributes) > _MAX_ATTRIBUTES:
        raise Unencodable(
            Cause.INVALID, f"headers need {len(attributes)} attributes, and Pub/Sub takes {_MAX_ATTRIBUTES}"
        )


def _fits(text: str) -> bool:
    return len(text) <= _MAX_VALUE // 4 or len(text.encode()) <= _MAX_VALUE


def _may_stand(name: str) -> bool:
    return len(name.encode()) <= _MAX_NAME and not name.startswith(("goog", _PACKED))


def _headers(attributes: Mapping[str, str]) -> Headers:
    found: dict[str, str | bytes] = {name: attributes[name] for name in attributes if name not in _OWN}
    pieces = [name for name in found if name.startswith(_PACKED)]
    if pieces:
        text = "".join(str(found.get(f"{_PACKED}{number}", "")) for number in range(len(pieces)))
        unpacked = _unpacked(text)
        if unpacked is not None:
            for name in pieces:
                del found[name]
            found |= unpacked
    if "CloudPubSubDeadLetterSourceDeliveryCount" in found and "brokerkit-dead-reason" not in found:
        count = found["CloudPubSubDeadLetterSourceDeliveryCount"]
        found["brokerkit-dead-reason"] = f"Pub/Sub moved it after {count!s} deliveries"
    return found


def _unpacked(text: str) -> dict[str, str | bytes] | None:
    """None for what brokerkit did not write."""
    try:
        packed = json.loads(text)
        return {
            str(name): value if isinstance(value, str) else base64.b64decode(value["base64"], validate=True)
            for name, value in packed.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
