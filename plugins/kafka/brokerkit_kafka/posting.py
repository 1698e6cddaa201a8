"""One message to librdkafka, and the delivery report that says how it ended. Each send passes here, so this is compiled
where there is a C compiler (hatch_build.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from mypy_extensions import mypyc_attr

from brokerkit.driver import Cause, Refused
from brokerkit.errors import ConnectionLost

SERVING: Final = 64
"""Messages after which a thread that sends all the time polls for reports: two threads that hand the interpreter to and
fro for each report cost more than the reports."""


class Posting:
    """Gives messages to one producer. One thread at a time uses it; reports come to whoever polls."""

    def __init__(
        self,
        produce: Any,
        topic: str,
        serve: Callable[[], None],
        outcome: Callable[[Any], Any],
        end: Callable[[str], None],
    ) -> None:
        """`serve`: polls, without waiting. `outcome`: what a client's error means. `end`: is told of a fatal one."""
        self.over: str | None = None
        """Why the session has ended."""
        self.closed = False
        """Reports come too late."""
        self.told: int = 0
        self.stored: int = 0
        self.taken: int = 0
        self.topic = topic
        self.outcome = outcome
        self._produce = produce
        self._serve = serve
        self._end = end

    def post(
        self,
        receipt: Any,
        body: bytes | None,
        id: str,
        key: str | None,
        headers: Any,
        content_type: str | None,
        published_at: int,
    ) -> bool:
        """Poster.post."""
        if self.over is not None:
            raise ConnectionLost(self.over)
        report = _Report(self, receipt)
        try:
            packed = pack(id, content_type, headers)
            raw_key = None if key is None else key.encode("utf-8", "surrogateescape")
            # By place (partition, callback, its other name, timestamp, headers): by name it takes twice as long.
            self._produce(self.topic, body, raw_key, -1, report, None, published_at, packed)
        except BufferError:
            return False
        except KafkaException as error:
            if error.args[0].code() == KafkaError._FATAL:
                self._end(error.args[0].str())
                raise ConnectionLost(error.args[0].str()) from None
            report(error.args[0], None)
        except UnicodeEncodeError:
            self.told += 1
            receipt.failed(Refused(0, 0, Cause.INVALID, "an id or header is not valid UTF-8"))
        self.taken += 1
        if self.taken % SERVING == 0:
            self._serve()
        return True


@mypyc_attr(acyclic=True, free_list_len=1)
class _Report:
    """What the client calls when it knows how one message ended."""

    def __init__(self, posting: Posting, receipt: Any) -> None:
        self.posting = posting
        self.receipt = receipt

    def __call__(self, error: Any, native: Any) -> None:
        posting = self.posting
        if posting.closed:
            return
        if error is None:
            self.receipt.stored(posting.topic, native.partition(), native.offset())
            posting.stored += 1
        else:
            self.receipt.failed(posting.outcome(error))
        posting.told += 1


def pack(id: str, content_type: str | None, headers: Any) -> list[tuple[str, str | bytes | None]]:
    """Headers as they are; which of them were bytes is told beside them where their values would not tell."""
    packed: list[tuple[str, str | bytes | None]] = [("brokerkit-id", id)]
    if content_type is not None:
        packed.append(("brokerkit-content-type", content_type))
    if headers:
        marked: list[str] = []
        for name, value in headers.items():
            packed.append((name, value))
            if isinstance(value, bytes) and _is_text(value):
                marked.append(name)
        if marked:
            packed.append(("brokerkit-bytes", json.dumps(marked)))
    return packed


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
