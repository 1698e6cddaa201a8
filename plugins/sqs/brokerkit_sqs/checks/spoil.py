"""Answers that SQS might give, made of the frames that went by. Pure."""

from __future__ import annotations

import json
from typing import Any

from brokerkit.driver import Frame

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length"


def content_of(raw: bytes) -> dict[str, Any]:
    """The JSON that a request or an answer carries; empty for one that carries none."""
    try:
        content = json.loads(raw.partition(_HEAD_END)[2])
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def with_content(raw: bytes, content: dict[str, Any]) -> bytes:
    """The same request or answer with another content."""
    head = raw.partition(_HEAD_END)[0]
    body = json.dumps(content).encode()
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(_LENGTH)]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body)]) + _HEAD_END + body


def answer(content: dict[str, Any], status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/x-amz-json-1.0".encode()
    return with_content(head + _HEAD_END, content)


def all_done(asked: Frame) -> bytes:
    """Says of each entry of a batch that it succeeded."""
    return answer({"Successful": [{"Id": entry["Id"]} for entry in content_of(asked.raw).get("Entries", ())]})


def refused(code: str, status: str) -> bytes:
    """Says that nothing of the request was done."""
    return answer({"__type": f"com.amazonaws.sqs#{code}", "message": "not now"}, status)


def failed_entry(id: str) -> dict[str, Any]:
    return {"Id": id, "SenderFault": False, "Code": "InternalError", "Message": "not this one"}


def reversed_messages(told: Frame) -> bytes | None:
    """The same messages the other way round; None for fewer than two."""
    content = content_of(told.raw)
    messages = content.get("Messages") or []
    if len(messages) < 2:
        return None
    return with_content(told.raw, {**content, "Messages": messages[::-1]})
