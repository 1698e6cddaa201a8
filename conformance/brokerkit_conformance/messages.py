"""The messages the actors send, and how a received one is told to be whole.

Every message carries a digest of all its parts in one header, so that a consumer can hold what it got against
what was sent without asking anybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

DIGEST = "suite-digest"
TRANSACTION = "suite-transaction"
"""The header in which an output says what transaction sent it."""
_BIG = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """One message to send, its digest header left out."""

    id: str
    body: bytes
    key: str | None = None
    headers: Mapping[str, str | bytes] = field(default_factory=dict)
    content_type: str | None = None

    @property
    def digest(self) -> str:
        return digest(self.body, self.key, self.headers, self.content_type)

    def headers_with_digest(self) -> dict[str, str | bytes]:
        return {**self.headers, DIGEST: self.digest}


def digest(body: bytes | None, key: str | None, headers: Mapping[str, str | bytes], content_type: str | None) -> str:
    """Of everything a producer set but the id; the digest header itself does not count."""
    parts = hashlib.sha256()
    for part in (body, key, content_type):
        _add(parts, part)
    for name in sorted(name for name in headers if name != DIGEST):
        _add(parts, name)
        _add(parts, headers[name])
    return parts.hexdigest()[:24]


def plain(prefix: str, first: int, count: int, keys: int, size: int) -> Iterator[Sample]:
    """Numbered messages, each body different, spread over `keys` keys (0: without a key)."""
    for number in range(first, first + count):
        id = f"{prefix}-{number}"
        body = (id.encode() + b".").ljust(size, b"x")
        yield Sample(id, body, key=f"key-{number % keys}" if keys else None)


def samples(prefix: str, largest: int | None) -> list[Sample]:
    """What a broker may be asked to carry: bodies from none to the largest, every kind of header, unicode."""
    found = [
        Sample(f"{prefix}-empty", b""),
        Sample(f"{prefix}-zero", b"\x00"),
        Sample(f"{prefix}-every-byte", bytes(range(256)) * 4),
        Sample(f"{prefix}-not-utf8", b"\xff\xfe\xfd broken"),
        Sample(f"{prefix}-64k", b"k" * 65536),
        Sample(f"{prefix}-1m", bytes(range(256)) * 4096),
        Sample(f"{prefix}-ünï-✓-日本", "größe ✓ 日本 🐇".encode(), key="schlüssel-日本", content_type="text/plain"),
        Sample(f"{prefix}-spaces and / % ? & =", b"id", key="a b/c%d?e&f=g"),
        Sample(f"{prefix}-typed", b'{"a": 1}', content_type="application/json; charset=utf-8"),
        Sample(
            f"{prefix}-headers",
            b"headers",
            headers={
                "text": "plain",
                "unicode": "größe ✓ 日本 🐇",
                "empty": "",
                "bytes": b"\x00\xff\x80",
                "no-bytes": b"",
                "looks-like-json": '{"a": [1, 2]}',
                "looks-like-a-number": "42",
                "bytes-that-are-text": b"text",
                "long": "v" * 4000,
                "Mixed-Case_Name.1": "kept",
            },
        ),
        Sample(f"{prefix}-many-headers", b"many", headers={f"name-{n}": f"value-{n}" for n in range(40)}),
        *(Sample(f"{prefix}-twin-{n}", b"identical body", key="twins") for n in range(3)),
    ]
    if largest is None or largest > 4 * _BIG:
        return [*found, Sample(f"{prefix}-8m", b"B" * _BIG)]
    # Room for the id, the digest and the protocol's own fields, where the limit counts them too.
    room = largest - 4096
    return [*(some for some in found if len(some.body) <= room), Sample(f"{prefix}-largest", b"L" * room)]


def _add(parts: hashlib._Hash, part: str | bytes | None) -> None:
    kind = b"n" if part is None else b"s" if isinstance(part, str) else b"b"
    raw = b"" if part is None else part.encode() if isinstance(part, str) else part
    parts.update(kind + len(raw).to_bytes(8, "big") + raw)
