"""What a message consists of: its fields checked, and an id made for it. Each send passes here, so this is compiled
where there is a C compiler (hatch_build.py). What users hand in is annotated as anything, for an error of ours to name
it: compiled code refuses a wrong type by itself."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from brokerkit.errors import ConfigurationError

Headers = Mapping[str, str | bytes]
IdSource = Literal["producer", "native", "none"]

NO_HEADERS: Headers = MappingProxyType({})
RESERVED: Final = "brokerkit-"
"""What the names of brokerkit's own headers begin with."""

Fields = tuple[bytes | None, str, str | None, Headers, str | None, int, IdSource]
"""What a Message consists of, in its order; a Message is such a tuple."""


def checked(
    body: object,
    id: object = None,
    key: object = None,
    headers: object = None,
    content_type: object = None,
    published_at: int | None = None,
    id_source: IdSource = "producer",
) -> Fields:
    """What is to be sent, with a fresh id where none is given. Raises ConfigurationError when a field has the
    wrong type; the error names it."""
    return (
        checked_body(body),
        new_id() if id is None else checked_text("id", id),
        None if key is None else checked_text("key", key),
        checked_headers(headers) if headers else NO_HEADERS,
        None if content_type is None else checked_text("content_type", content_type),
        now_ms() if published_at is None else published_at,
        id_source,
    )


def checked_body(body: object) -> bytes | None:
    """Bytes; None is a tombstone's."""
    if body is None or isinstance(body, bytes):
        return body
    if not isinstance(body, (bytearray, memoryview)):
        raise ConfigurationError(
            f"body must be bytes, not {type(body).__name__}: encode it first, for example json.dumps(value).encode()"
        )
    return bytes(body)


def checked_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a str, not {type(value).__name__}")
    if not value:
        raise ConfigurationError(f"{name} must not be empty: leave it out instead")
    if not value.isascii():  # known without looking at it
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigurationError(f"{name} holds a lone surrogate, which UTF-8 cannot carry") from None
    return value


def checked_headers(headers: Any) -> dict[str, str | bytes]:
    """A copy of `headers`; raises ConfigurationError for a name or value of a wrong type."""
    copied: dict[Any, Any] = dict(headers)
    for name, value in copied.items():
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"header names are non-empty str, not {name!r}")
        if not isinstance(value, str) and not isinstance(value, bytes):
            raise ConfigurationError(
                f"header {name!r} must be str or bytes, not {type(value).__name__}: convert it first"
            )
        if name.startswith(RESERVED):
            raise ConfigurationError(f"header {name!r}: names that begin with brokerkit- are reserved")
    return copied


def now_ms() -> int:
    """Wall clock in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class _Ids:
    """Unique ids at the cost of a counter: 96 random bits a process, then a count."""

    def __init__(self) -> None:
        self.prefix = ""
        self.next: Callable[[], int] = itertools.count().__next__
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.prefix = os.urandom(12).hex() + "-"
        self.next = itertools.count().__next__


_ids: Final = _Ids()


def new_id() -> str:
    """A new message id, unique across processes, machines and forks. Thread-safe."""
    return _ids.prefix + str(_ids.next())
