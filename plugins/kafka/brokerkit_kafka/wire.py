"""Kafka on the wire, for fault proxies: bytes to frames, and which of them publish, confirm, ack and commit."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from brokerkit.driver import Frame

_KINDS = {
    0: ("publish", "confirm"),
    1: ("fetch", "deliver"),
    8: ("ack", "ack_answer"),
    12: ("heartbeat", "heartbeat"),
    26: ("commit", "commit_answer"),
    28: ("ack", "ack_answer"),
    68: ("heartbeat", "heartbeat"),
}
_NAMES = {
    0: "Produce",
    1: "Fetch",
    2: "ListOffsets",
    3: "Metadata",
    8: "OffsetCommit",
    9: "OffsetFetch",
    10: "FindCoordinator",
    11: "JoinGroup",
    12: "Heartbeat",
    13: "LeaveGroup",
    14: "SyncGroup",
    17: "SaslHandshake",
    18: "ApiVersions",
    22: "InitProducerId",
    24: "AddPartitionsToTxn",
    25: "AddOffsetsToTxn",
    26: "EndTxn",
    28: "TxnOffsetCommit",
    36: "SaslAuthenticate",
    68: "ConsumerGroupHeartbeat",
}
_ID = b"\x18brokerkit-id"
"""The header's name in a record, behind its length as a zigzag varint."""
_UNANSWERED = 4096
"""Requests kept at most: acks=0 publishes are never answered."""


class KafkaCodec:
    """One connection. Every frame is a length and a body; a request says what it is, a response only which request
    it answers. Ids are seen in batches that are not compressed, and a confirm carries those of its publish. On a
    connection that speaks TLS nothing can be seen: its bytes are passed on as they come, as `other`."""

    def __init__(self) -> None:
        self._client = bytearray()
        self._broker = bytearray()
        self._asked: dict[int, tuple[int, int, tuple[str, ...]]] = {}
        self._opaque: bool | None = None

    def client(self, data: bytes) -> Iterable[Frame]:
        if self._opaque is None and data:
            self._opaque = data[0] == 0x16  # a TLS handshake; a request this long is refused by every broker
        if self._opaque:
            return [Frame(data, "other", "TLS")]
        self._client += data
        return [self._request(raw) for raw in _frames(self._client)]

    def broker(self, data: bytes) -> Iterable[Frame]:
        if self._opaque:
            return [Frame(data, "other", "TLS")]
        self._broker += data
        return [self._response(raw) for raw in _frames(self._broker)]

    def _request(self, raw: bytes) -> Frame:
        if len(raw) < 12:
            return Frame(raw, "other", "malformed request")
        key, version, number = struct.unpack_from(">hhi", raw, 4)
        kind = _KINDS.get(key, ("other", "other"))[0]
        ids = tuple(_ids(raw)) if kind == "publish" else ()
        self._asked[number] = (key, version, ids)
        if len(self._asked) > _UNANSWERED:
            del self._asked[next(iter(self._asked))]
        return Frame(raw, kind, f"{_name(key)} v{version} request", ids)

    def _response(self, raw: bytes) -> Frame:
        if len(raw) < 8:
            return Frame(raw, "other", "malformed response")
        asked = self._asked.pop(struct.unpack_from(">i", raw, 4)[0], None)
        if asked is None:
            return Frame(raw, "other", "response to nothing")
        key, version, ids = asked
        kind = _KINDS.get(key, ("other", "other"))[1]
        if kind == "deliver":
            ids = tuple(_ids(raw))
        return Frame(raw, kind, f"{_name(key)} v{version} response{_refused(key, version, raw)}", ids)


def _refused(key: int, version: int, raw: bytes) -> str:
    """What an answer to EndTxn says; its header is longer since version 3."""
    place = 12 + (version >= 3)
    if key != 26 or len(raw) < place + 2:
        return ""
    return f", error {struct.unpack_from('>h', raw, place)[0]}"


def _frames(buffer: bytearray) -> list[bytes]:
    """Takes the whole frames, each with its length in front, out of the buffer."""
    frames = []
    start = 0
    while len(buffer) - start >= 4:
        end = start + 4 + max(0, struct.unpack_from(">i", buffer, start)[0])
        if end > len(buffer):
            break
        frames.append(bytes(buffer[start:end]))
        start = end
    del buffer[:start]
    return frames


def _ids(raw: bytes) -> Iterator[str]:
    """Values of the id header in uncompressed record batches."""
    place = raw.find(_ID)
    while place >= 0:
        place += len(_ID)
        length, place = _varint(raw, place)
        if 0 < length <= len(raw) - place:
            yield raw[place : place + length].decode("utf-8", "replace")
            place += length
        place = raw.find(_ID, place)


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    """A zigzag varint and the place behind it; a broken one is -1."""
    value = shift = 0
    while place < len(raw) and shift < 35:
        byte = raw[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return (value >> 1) ^ -(value & 1), place
        shift += 7
    return -1, place


def _name(key: int) -> str:
    return _NAMES.get(key, f"api {key}")
