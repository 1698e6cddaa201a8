"""SQS and SNS on the wire, for fault proxies: HTTP requests and answers, and which of them send, confirm, take and ack.

SQS is spoken as JSON, the operation in a header; SNS as a form, the operation in its first field.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from brokerkit.driver import Frame

_KINDS = {
    "SendMessage": ("publish", "confirm"),
    "SendMessageBatch": ("publish", "confirm"),
    "Publish": ("publish", "confirm"),
    "PublishBatch": ("publish", "confirm"),
    "DeleteMessage": ("ack", "ack_answer"),
    "DeleteMessageBatch": ("ack", "ack_answer"),
    "ReceiveMessage": ("fetch", "deliver"),
    "ChangeMessageVisibility": ("heartbeat", "heartbeat"),
    "ChangeMessageVisibilityBatch": ("heartbeat", "heartbeat"),
}
_ID, _PACKED = "brokerkit-id", "brokerkit-headers"
_HEAD_END = b"\r\n\r\n"
_LONGEST_HEAD = 65_536


class SqsCodec:
    """One connection. Answers come in the order of their requests, and a confirm carries the ids of its sends. On a
    connection that does not speak plain HTTP nothing can be seen: its bytes are passed on as they come, as `other`."""

    def __init__(self) -> None:
        self._client = bytearray()
        self._broker = bytearray()
        self._asked: deque[tuple[str, tuple[str, ...]]] = deque()
        self._opaque = False

    def client(self, data: bytes) -> Iterable[Frame]:
        self._client += data
        if not self._opaque and self._client and not self._client[:1].isalpha():
            self._opaque = True  # TLS: it begins with the number of a handshake
        if self._opaque:
            return self._all(self._client)
        frames = []
        while (raw := _message(self._client)) is not None:
            frames.append(self._request(raw))
        return frames

    def broker(self, data: bytes) -> Iterable[Frame]:
        self._broker += data
        if self._opaque:
            return self._all(self._broker)
        frames = []
        while (raw := _message(self._broker, answer=True)) is not None:
            frames.append(self._answer(raw))
        return frames

    def _all(self, buffer: bytearray) -> list[Frame]:
        raw = bytes(buffer)
        buffer.clear()
        return [Frame(raw, "other", "not plain HTTP")] if raw else []

    def _request(self, raw: bytes) -> Frame:
        head, _, body = raw.partition(_HEAD_END)
        target = _header(head, b"x-amz-target").rpartition(".")[2]
        content: Any = None
        if not target:
            content = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
            target = content.get("Action", "")
        kind = _KINDS.get(target, ("other", "other"))[0]
        ids: tuple[str, ...] = ()
        if kind == "publish":
            ids = tuple(_ids_in_form(content) if content is not None else _ids_in_json(body))
        self._asked.append((target, ids))
        return Frame(raw, kind, f"{target or 'unknown'} request", ids)

    def _answer(self, raw: bytes) -> Frame:
        if raw.startswith(b"HTTP/1.1 1"):
            return Frame(raw, "other", "interim answer")
        if not self._asked:
            return Frame(raw, "other", "answer to nothing")
        target, ids = self._asked.popleft()
        kind = _KINDS.get(target, ("other", "other"))[1]
        head, _, body = raw.partition(_HEAD_END)
        status = head.split(b" ", 2)[1].decode("ascii", "replace") if head.count(b" ") > 1 else "?"
        if kind == "deliver":
            ids = tuple(_ids_in_json(_unchunked(head, body)))
            if not ids and b'"Messages"' not in body:
                return Frame(raw, "other", f"{target} answer {status}, empty")
        return Frame(raw, kind, f"{target or 'unknown'} answer {status}", ids)


def _message(buffer: bytearray, *, answer: bool = False) -> bytes | None:
    """Takes the first whole HTTP message out of the buffer; None while there is none."""
    head_end = buffer.find(_HEAD_END)
    if head_end < 0:
        if len(buffer) > _LONGEST_HEAD:
            raise ValueError("an HTTP head that does not end")
        return None
    head = bytes(buffer[:head_end])
    start = head_end + len(_HEAD_END)
    if _header(head, b"transfer-encoding").lower() == "chunked":
        end = _chunks_end(buffer, start)
    elif answer and (head[9:10] == b"1" or head[9:12] in (b"204", b"304")):
        end = start
    else:
        end = start + int(_header(head, b"content-length") or 0)
    if end is None or end > len(buffer):
        return None
    raw = bytes(buffer[:end])
    del buffer[:end]
    return raw


def _chunks_end(buffer: bytearray, place: int) -> int | None:
    """Where a chunked body ends; None while it has not come whole."""
    while (line_end := buffer.find(b"\r\n", place)) >= 0:
        size = int(bytes(buffer[place:line_end]).split(b";")[0], 16)
        place = line_end + 2 + size + 2
        if size == 0:
            return place if place <= len(buffer) else None
        if place > len(buffer):
            return None
    return None


def _unchunked(head: bytes, body: bytes) -> bytes:
    if _header(head, b"transfer-encoding").lower() != "chunked":
        return body
    whole = b""
    while body:
        line, _, rest = body.partition(b"\r\n")
        size = int(line.split(b";")[0] or b"0", 16)
        whole += rest[:size]
        body = rest[size + 2 :] if size else b""
    return whole


def _header(head: bytes, name: bytes) -> str:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip().decode("latin-1")
    return ""


def _ids_in_json(body: bytes) -> list[str]:
    """Message ids in a send's entries or a receive's messages."""
    try:
        content = json.loads(body)
    except ValueError:
        return []
    if not isinstance(content, dict):
        return []
    some = content.get("Entries") or content.get("Messages") or [content]
    return [id for one in some if isinstance(one, dict) and (id := _id_of(one.get("MessageAttributes")))]


def _id_of(attributes: Any) -> str:
    if not isinstance(attributes, Mapping):
        return ""
    if _ID in attributes:
        return str(attributes[_ID].get("StringValue", ""))
    try:
        return str(json.loads(attributes[_PACKED]["StringValue"]).get(_ID, ""))
    except (KeyError, ValueError, TypeError, AttributeError):
        return ""


def _ids_in_form(form: Mapping[str, str]) -> list[str]:
    """The values beside our attribute's names: `….entry.2.Name=brokerkit-id`, `….entry.2.Value.StringValue=…`."""
    return [
        form.get(name.removesuffix(".Name") + ".Value.StringValue", "")
        for name, value in form.items()
        if value == _ID and name.endswith(".Name")
    ]
