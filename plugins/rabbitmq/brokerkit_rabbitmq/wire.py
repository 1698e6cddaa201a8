"""AMQP 0-9-1 on the wire, as a fault proxy needs it: whole frames, and which message, ack or confirm each carries.

Pure: bytes in, frames out. It follows publish numbers and delivery tags of each channel, so that a confirm and an ack
name the messages they are about.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from pika import spec

from brokerkit.driver import Frame
from brokerkit_rabbitmq.encoding import sent_id

_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_START = struct.Struct(">BHI")
_PUBLISH, _DELIVER, _GET_OK = spec.Basic.Publish.INDEX, spec.Basic.Deliver.INDEX, spec.Basic.GetOk.INDEX
_ACK, _REJECT, _NACK = spec.Basic.Ack.INDEX, spec.Basic.Reject.INDEX, spec.Basic.Nack.INDEX
_FETCHING = (spec.Basic.Get.INDEX, spec.Basic.Consume.INDEX)
_WITH_CONTENT = {_PUBLISH: "publish", spec.Basic.Return.INDEX: "other", _DELIVER: "deliver", _GET_OK: "deliver"}

NAMES: dict[int, str] = {
    index: ".".join(re.sub(r"(?<=[a-z])(?=[A-Z])", "-", part).lower() for part in method.NAME.split("."))
    for index, method in spec.methods.items()
}
"""`basic.publish` and the like, by class and method id."""


@dataclass(slots=True)
class _Content:
    """A method with content that is not whole yet."""

    kind: str
    native: str
    raw: list[bytes]
    tag: int = 0
    left: int = -1
    id: str = ""


@dataclass(slots=True)
class _Channel:
    """What both directions of a channel have in common."""

    confirming: bool = False
    published: int = 0
    unconfirmed: dict[int, str] = field(default_factory=dict)
    unsettled: dict[int, str] = field(default_factory=dict)


class AmqpCodec:
    """One connection. Bytes that are not AMQP pass as one frame `unreadable`, and so does all that follows."""

    def __init__(self) -> None:
        self._channels: dict[int, _Channel] = {}
        self._client = _Direction(self, from_client=True)
        self._broker = _Direction(self, from_client=False)

    def client(self, data: bytes) -> list[Frame]:
        return list(self._client.feed(data))

    def broker(self, data: bytes) -> list[Frame]:
        return list(self._broker.feed(data))

    def channel(self, number: int) -> _Channel:
        return self._channels.setdefault(number, _Channel())

    def opened(self, number: int) -> None:
        """A channel number that is used again starts from nothing."""
        self._channels[number] = _Channel()


class _Direction:
    def __init__(self, codec: AmqpCodec, *, from_client: bool) -> None:
        self._codec = codec
        self._from_client = from_client
        self._buffer = b""
        self._contents: dict[int, _Content] = {}
        self._lost = False

    def feed(self, data: bytes) -> Iterator[Frame]:
        self._buffer += data
        while self._buffer and not self._lost:
            if self._buffer[0] == 65:
                if len(self._buffer) < 8:
                    return
                raw, self._buffer = self._buffer[:8], self._buffer[8:]
                yield Frame(raw, "other", "protocol-header")
                continue
            if len(self._buffer) < 7:
                return
            kind, channel, size = _START.unpack_from(self._buffer)
            if kind not in (_METHOD, _HEADER, _BODY, _HEARTBEAT):
                self._lost = True
                break
            if len(self._buffer) < size + 8:
                return
            raw, self._buffer = self._buffer[: size + 8], self._buffer[size + 8 :]
            whole = self._frame(kind, channel, raw)
            if whole is not None:
                yield whole
        if self._lost and self._buffer:
            raw, self._buffer = self._buffer, b""
            yield Frame(raw, "other", "unreadable")

    def _frame(self, kind: int, channel: int, raw: bytes) -> Frame | None:
        if kind == _HEARTBEAT:
            return Frame(raw, "heartbeat", "heartbeat")
        if kind == _METHOD:
            return self._method(channel, raw)
        content = self._contents.get(channel)
        if content is None:
            return Frame(raw, "other", "header" if kind == _HEADER else "body")
        content.raw.append(raw)
        if kind == _HEADER:
            content.left = int(struct.unpack_from(">Q", raw, 11)[0])
            content.id = sent_id(raw[7:-1])
        else:
            content.left -= len(raw) - 8
        return self._whole(channel, content) if content.left <= 0 else None

    def _method(self, channel: int, raw: bytes) -> Frame | None:
        index = int(struct.unpack_from(">I", raw, 7)[0])
        native = NAMES.get(index, f"{index >> 16}.{index & 0xFFFF}")
        if index in _WITH_CONTENT:
            content = _Content(_WITH_CONTENT[index], native, [raw])
            if index == _DELIVER:
                content.tag = int(struct.unpack_from(">Q", raw, 12 + raw[11])[0])
            elif index == _GET_OK:
                content.tag = int(struct.unpack_from(">Q", raw, 11)[0])
            self._contents[channel] = content
            return None
        if index in (_ACK, _NACK, _REJECT):
            return self._settlement(channel, index, raw, native)
        if self._from_client and index == spec.Channel.Open.INDEX:
            self._codec.opened(channel)
        elif self._from_client and index == spec.Confirm.Select.INDEX:
            self._codec.channel(channel).confirming = True
        fetching = self._from_client and index in _FETCHING
        return Frame(raw, "fetch" if fetching else "other", native)

    def _whole(self, number: int, content: _Content) -> Frame:
        del self._contents[number]
        channel = self._codec.channel(number)
        if content.kind == "publish" and channel.confirming:
            channel.published += 1
            channel.unconfirmed[channel.published] = content.id
        elif content.kind == "deliver":
            channel.unsettled[content.tag] = content.id
        ids = (content.id,) if content.id else ()
        return Frame(b"".join(content.raw), content.kind, content.native, ids)

    def _settlement(self, number: int, index: int, raw: bytes, native: str) -> Frame:
        """An ack of the broker is a confirm. What is nacked or rejected is named too, as `other`."""
        tag = int(struct.unpack_from(">Q", raw, 11)[0])
        multiple = index != _REJECT and bool(raw[19] & 1)
        channel = self._codec.channel(number)
        open_tags = channel.unsettled if self._from_client else channel.unconfirmed
        tags = [each for each in open_tags if each == tag or (multiple and (each < tag or tag == 0))]
        ids = tuple(id for id in (open_tags.pop(each) for each in tags) if id)
        kind = ("ack" if self._from_client else "confirm") if index == _ACK else "other"
        return Frame(raw, kind, native, ids)
