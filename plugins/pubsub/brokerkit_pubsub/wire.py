"""gRPC on the wire, as a fault proxy needs it: HTTP/2 frames, and which message, ack or confirm each one completes.

Pure: bytes in, frames out. What may be dropped are data frames alone: a request is named on the frame that ends it,
an answer on its first. Header frames are `other` and have to pass, for both ends keep a table of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError
from google.pubsub_v1.types import pubsub as types
from hpack import Decoder
from hpack.exceptions import HPACKError

from brokerkit.driver import Frame

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _CONTINUATION = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x9
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x4, 0x8, 0x20
_NAMES = {
    _DATA: "DATA",
    _HEADERS: "HEADERS",
    0x2: "PRIORITY",
    _RST: "RST_STREAM",
    _SETTINGS: "SETTINGS",
    0x5: "PUSH_PROMISE",
    _PING: "PING",
    _GOAWAY: "GOAWAY",
    0x8: "WINDOW_UPDATE",
    _CONTINUATION: "CONTINUATION",
}
_REQUESTS = {"Publish": "publish", "Acknowledge": "ack", "ModifyAckDeadline": "extend", "Pull": "fetch"}
_ANSWERS = {"Publish": "confirm", "Acknowledge": "ack_answer", "Pull": "deliver"}
_ID = "brokerkit-id"

PublishRequest = types.PublishRequest.pb()
PullResponse = types.PullResponse.pb()
AcknowledgeRequest = types.AcknowledgeRequest.pb()
ModifyAckDeadlineRequest = types.ModifyAckDeadlineRequest.pb()


@dataclass(slots=True)
class _Stream:
    """One call."""

    method: str
    request: bytearray = field(default_factory=bytearray)
    answer: bytearray = field(default_factory=bytearray)
    ids: tuple[str, ...] = ()
    answered: bool = False


class PubsubCodec:
    """One connection. Bytes that are not HTTP/2 pass as one frame `unreadable`, and so does all that follows."""

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}
        self._client = _Direction(self, from_client=True)
        self._broker = _Direction(self, from_client=False)
        self._ids: dict[str, str] = {}
        """Message ids by the ack ids under which they were handed out."""

    def client(self, data: bytes) -> list[Frame]:
        return list(self._client.feed(data))

    def broker(self, data: bytes) -> list[Frame]:
        return list(self._broker.feed(data))

    # ------------------------------------------------------------ calls

    def called(self, number: int, path: str) -> None:
        self._streams[number] = _Stream(path.rpartition("/")[2])

    def requested(self, number: int, data: bytes, ends: bool) -> tuple[str, str, tuple[str, ...]]:
        stream = self._streams.get(number)
        if stream is None:
            return "other", "DATA", ()
        stream.request += data
        if not ends:
            return "other", f"{stream.method} (part)", ()
        native = stream.method
        if stream.method == "Publish":
            stream.ids = _published(stream.request)
        elif stream.method in ("Acknowledge", "ModifyAckDeadline"):
            acks, seconds = _acked(stream.method, stream.request)
            stream.ids = tuple(self._ids[ack] for ack in acks if ack in self._ids)
            if seconds == 0:
                native = "ModifyAckDeadline (nack)"
        stream.request.clear()
        return _REQUESTS.get(stream.method, "other"), native, stream.ids

    def answered(self, number: int, data: bytes) -> tuple[str, str, tuple[str, ...]]:
        stream = self._streams.get(number)
        if stream is None:
            return "other", "DATA", ()
        first, stream.answered = not stream.answered, True
        kind = _ANSWERS.get(stream.method, "other")
        if stream.method == "Pull":
            stream.answer += data
            self._handed_out(stream)
            if len(stream.answer) <= 5 and first:
                return "other", "Pull answer, empty", ()
        return (kind if first else "other"), f"{stream.method} answer", stream.ids

    def ended(self, number: int) -> None:
        self._streams.pop(number, None)

    def _handed_out(self, stream: _Stream) -> None:
        message = _message(stream.answer)
        if message is None:
            return
        try:
            answer = PullResponse.FromString(message)
        except DecodeError:
            return
        found = {some.ack_id: some.message.attributes.get(_ID) for some in answer.received_messages}
        self._ids.update({ack: id for ack, id in found.items() if id})
        stream.ids = tuple(id for id in found.values() if id)


class _Direction:
    def __init__(self, codec: PubsubCodec, *, from_client: bool) -> None:
        self._codec = codec
        self._from_client = from_client
        self._buffer = b""
        self._begun = not from_client
        self._unreadable = False
        self._headers = Decoder()
        self._block = b""
        self._block_ends = False

    def feed(self, data: bytes) -> Iterator[Frame]:
        self._buffer += data
        while self._buffer:
            if self._unreadable:
                yield Frame(self._taken(len(self._buffer)), "other", "unreadable")
                return
            if not self._begun:
                if len(self._buffer) < len(_PREFACE) and _PREFACE.startswith(self._buffer):
                    return
                self._begun = True
                if not self._buffer.startswith(_PREFACE):
                    self._unreadable = True
                    continue
                yield Frame(self._taken(len(_PREFACE)), "other", "preface")
                continue
            if len(self._buffer) < 9:
                return
            length = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + length:
                return
            yield self._frame(self._taken(9 + length))

    def _taken(self, size: int) -> bytes:
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _frame(self, raw: bytes) -> Frame:
        kind, flags, number = struct.unpack_from(">BBI", raw, 3)
        number &= 0x7FFFFFFF
        payload = _unpadded(raw[9:], flags) if kind in (_DATA, _HEADERS) else raw[9:]
        name = _NAMES.get(kind, f"frame {kind}")
        if kind == _PING:
            return Frame(raw, "heartbeat", name)
        if kind == _DATA:
            return self._data(raw, number, payload, bool(flags & _END_STREAM))
        if kind in (_HEADERS, _CONTINUATION):
            if kind == _HEADERS:
                self._block = payload[5:] if flags & _PRIORITY else payload
                self._block_ends = bool(flags & _END_STREAM)
            else:
                self._block += payload
            if flags & _END_HEADERS:
                self._head(number)
        elif kind == _RST:
            self._codec.ended(number)
        return Frame(raw, "other", name)

    def _data(self, raw: bytes, number: int, payload: bytes, ends: bool) -> Frame:
        if self._from_client:
            return Frame(raw, *self._codec.requested(number, payload, ends))
        return Frame(raw, *self._codec.answered(number, payload))

    def _head(self, number: int) -> None:
        if self._from_client:
            try:
                headers = dict(self._headers.decode(self._block, raw=True))
            except HPACKError:
                self._unreadable = True
                return
            if b":path" in headers:
                self._codec.called(number, headers[b":path"].decode("ascii", "replace"))
        elif self._block_ends:
            self._codec.ended(number)


def _unpadded(payload: bytes, flags: int) -> bytes:
    if not flags & _PADDED or not payload:
        return payload
    return payload[1 : len(payload) - payload[0]]


def _message(data: bytes | bytearray) -> bytes | None:
    """The message of a call, without gRPC's prefix; None while it is not whole, or compressed."""
    if len(data) < 5 or data[0] != 0:
        return None
    length = int.from_bytes(data[1:5], "big")
    return bytes(data[5 : 5 + length]) if len(data) >= 5 + length else None


def _published(data: bytearray) -> tuple[str, ...]:
    message = _message(data)
    if message is None:
        return ()
    try:
        request = PublishRequest.FromString(message)
    except DecodeError:
        return ()
    return tuple(some.attributes[_ID] for some in request.messages if _ID in some.attributes)


def _acked(method: str, data: bytearray) -> tuple[list[str], int | None]:
    """The ack ids of a request, and for a new deadline its seconds."""
    message = _message(data)
    if message is None:
        return [], None
    try:
        if method == "Acknowledge":
            return list(AcknowledgeRequest.FromString(message).ack_ids), None
        request = ModifyAckDeadlineRequest.FromString(message)
    except DecodeError:
        return [], None
    return list(request.ack_ids), request.ack_deadline_seconds
