"""The `Idempotency-Key` header of requests, as the IETF's draft-ietf-httpapi-idempotency-key-header says it: what the
ASGI and the WSGI middleware have in common. No I/O but the store's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

from brokerkit.errors import ConfigurationError, KeyInUse, KeyLost, KeyReused
from brokerkit.events import logger
from brokerkit.once.keys import Held, Keys, derived_key

METHODS = ("POST", "PATCH")
"""Those that do it again when they are sent again; the others are idempotent by HTTP."""

LARGEST = 1 << 20
"""Bytes of a body that are read, or stored."""

HELD = "brokerkit.held"
"""Where the handler finds its `Held`: in the ASGI scope, or the WSGI environ."""

_NOT_FINAL = (401, 403, 408, 425, 429)
_QUOTED = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_BARE = re.compile(r"[\x21\x23-\x2b\x2d-\x5b\x5d-\x7e]+")


def final(status: int) -> bool:
    """Whether an answer of this status is stored and given to every retry. What is not leaves the key failed, and the
    same request may be made again: 5xx, for the server says that it did not do it, and 401, 403, 408, 425 and 429,
    which say that nothing was begun."""
    return status < 500 and status not in _NOT_FINAL


def packed(head: Any, body: bytes) -> bytes:
    """A line of JSON, and the body as it is."""
    return json.dumps(head).encode() + b"\n" + body


def unpacked(stored: bytes) -> tuple[Any, bytes]:
    head, _, body = stored.partition(b"\n")
    return json.loads(head), body


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: `headers` are pairs, as they go on the wire."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes

    def dump(self) -> bytes:
        """As it is stored; what a handler gives to `Held.finish`."""
        return packed([self.status, [list(pair) for pair in self.headers]], self.body)

    @classmethod
    def load(cls, stored: bytes) -> Self:
        (status, headers), body = unpacked(stored)
        return cls(status, [(name, value) for name, value in headers], body)


def problem(status: int, detail: str, retry_after: int | None = None) -> Answer:
    """An error, as RFC 9457 says it."""
    said = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    body = json.dumps(said).encode()
    headers = [("content-type", "application/problem+json"), ("content-length", str(len(body)))]
    return Answer(status, headers if retry_after is None else [*headers, ("retry-after", str(retry_after))], body)


@dataclass(frozen=True, slots=True)
class Request:
    """What a key stands for. `caller`: who asks, where the keys of each caller are their own."""

    method: str
    target: str
    content_type: str
    authorization: str
    body: bytes
    caller: str | None = None


class Guard:
    """What to do with a request that has a key. Thread-safe."""

    def __init__(
        self, keys: Keys, required: bool, methods: Collection[str], largest_request: int, largest_response: int
    ) -> None:
        self._keys = keys
        self._required = required
        self._methods = frozenset(method.upper() for method in methods)
        self.largest_request = largest_request
        self.largest_response = largest_response

    def key(self, method: str, values: Sequence[str]) -> str | Answer | None:
        """The key of a request with these `Idempotency-Key` lines; None when it is none of this guard's business."""
        if method not in self._methods:
            return None
        if not values:
            missing = "this operation needs an Idempotency-Key header: one key for one request, the same on its retries"
            return problem(400, missing) if self._required else None
        value = values[0].strip(" \t")
        quoted = _QUOTED.fullmatch(value)
        if len(values) == 1 and quoted and quoted[1]:
            return re.sub(r"\\(.)", r"\1", quoted[1])
        if len(values) == 1 and _BARE.fullmatch(value):  # not by the draft, and sent by many
            return value
        return problem(400, 'Idempotency-Key is one string in quotes, not empty: Idempotency-Key: "8e03978e-40d5"')

    def too_large(self) -> Answer:
        size = self.largest_request
        return problem(413, f"a request with an Idempotency-Key has at most {size} bytes here; nothing was done")

    def begin(self, key: str, request: Request) -> Held | Answer:
        """The key, which is this request's now, or the answer to give instead."""
        authorization = request.authorization if request.caller is None else ""
        identity = [
            request.method,
            request.target,
            request.content_type,
            hashlib.sha256(authorization.encode()).hexdigest(),
            hashlib.sha256(request.body).hexdigest(),
        ]
        try:
            name = key if request.caller is None else derived_key("caller", request.caller or "-", key)
            held = self._keys.hold(name, identity)
        except KeyInUse:
            return problem(409, "a request with this Idempotency-Key is in progress: send it again later", 1)
        except KeyReused:
            return problem(
                422,
                "this Idempotency-Key came with another request before (method, target, content type, credentials or "
                "body): another request needs another key",
            )
        except ConfigurationError as error:
            return problem(400, str(error))
        except Exception:  # the database's own errors too: the caller is told, and the log says which
            return self._away("nothing was done")
        if held.fresh:
            return held
        stored = Answer.load(held.result)
        return Answer(stored.status, [*stored.headers, ("idempotent-replayed", "true")], stored.body)

    def end(self, held: Held, answer: Answer) -> Answer:
        """Stores the answer, and returns the one to give."""
        try:
            if held.over:  # the handler finished it in a transaction of its own
                if held.settled():
                    return Answer.load(held.result)
                self.failed(held)
                return problem(500, "what this request did was not committed; it may be sent again")
            if final(answer.status):
                held.finish(answer.dump())
            else:
                self.failed(held)
        except KeyLost:
            return problem(409, "this took so long that another attempt took over: send it again for its answer", 1)
        except Exception:
            held.abandon()
            return self._away("the answer could not be recorded")
        return answer

    def outgrown(self, held: Held, status: int) -> None:
        """An answer that is too large to be stored goes out: the key is done, and retries are told why they get
        none."""
        gone = problem(
            410,
            f"this request was done with status {status}; its answer had more than {self.largest_response} bytes and "
            "was not kept",
        )
        self.end(held, gone if final(status) else problem(500, ""))

    def failed(self, held: Held) -> None:
        """The request may be made again; where that cannot be stored, when the lease is over."""
        try:
            held.fail()
        except Exception:
            held.abandon()

    def _away(self, what: str) -> Answer:
        logger.exception("the store of idempotency keys gave no answer")
        return problem(503, f"idempotency keys cannot be looked up now; {what}: send it again later, same key", 1)
