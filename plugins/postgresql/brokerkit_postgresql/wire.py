"""PostgreSQL's protocol 3 on the wire, as a fault proxy needs it: whole messages, and which of them commit. Pure.

Only the text of statements is looked into: a COMMIT that was prepared before is not recognised.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from brokerkit.driver import Frame

_SSL, _GSS = 80_877_103, 80_877_104
_QUERY, _PARSE, _COMPLETE = ord("Q"), ord("P"), ord("C")


class PostgresqlCodec:
    """One connection without TLS. After an answer that begins TLS all is one kind of frame, `other`."""

    def __init__(self) -> None:
        self._from_client = b""
        self._from_server = b""
        self._started = False
        self._asked = 0
        """How many answers of one byte are to come, to whether the connection may be made secret."""
        self._secret = False

    def client(self, data: bytes) -> Iterator[Frame]:
        self._from_client += data
        while not self._secret:
            frame = self._message() if self._started else self._greeting()
            if frame is None:
                return
            yield frame
        yield from self._rest("_from_client")

    def broker(self, data: bytes) -> Iterator[Frame]:
        self._from_server += data
        while self._asked and self._from_server:
            answer, self._from_server = self._from_server[:1], self._from_server[1:]
            self._asked -= 1
            self._secret = answer != b"N"
            yield Frame(answer, "other", "answer to a request for TLS")
        while not self._secret:
            raw, self._from_server = _whole(self._from_server, 1)
            if not raw:
                return
            committed = raw[0] == _COMPLETE and raw[5:] == b"COMMIT\0"
            yield Frame(raw, "commit_answer" if committed else "other", _name(raw))
        yield from self._rest("_from_server")

    def _greeting(self) -> Frame | None:
        """What comes first has no letter before its length."""
        raw, self._from_client = _whole(self._from_client, 0)
        if not raw:
            return None
        if struct.unpack_from(">I", raw, 4)[0] in (_SSL, _GSS):
            self._asked += 1
            return Frame(raw, "other", "request for TLS")
        self._started = True
        return Frame(raw, "other", "startup")

    def _message(self) -> Frame | None:
        raw, self._from_client = _whole(self._from_client, 1)
        if not raw:
            return None
        return Frame(raw, "commit" if _statement(raw).strip().lower() == b"commit" else "other", _name(raw))

    def _rest(self, name: str) -> Iterator[Frame]:
        raw: bytes = getattr(self, name)
        setattr(self, name, b"")
        if raw:
            yield Frame(raw, "other", "secret")


def _statement(raw: bytes) -> bytes:
    """The SQL of a Query, or of a Parse, where the name of the prepared statement stands before it."""
    if raw[0] == _QUERY:
        return raw[5:].partition(b"\0")[0]
    if raw[0] == _PARSE:
        return raw[5:].partition(b"\0")[2].partition(b"\0")[0]
    return b""


def _name(raw: bytes) -> str:
    """For evidence: the message's letter, and its SQL or tag where that is short."""
    text = _statement(raw) or (raw[5:-1] if raw[0] == _COMPLETE else b"")
    return f"{chr(raw[0])} {text[:40].decode(errors='replace')}".strip()


def _whole(data: bytes, letters: int) -> tuple[bytes, bytes]:
    """The first message, and what follows it; nothing as long as it is not whole. The length counts itself."""
    if len(data) < letters + 4:
        return b"", data
    end = letters + int(struct.unpack_from(">I", data, letters)[0])
    return (data[:end], data[end:]) if len(data) >= end else (b"", data)
