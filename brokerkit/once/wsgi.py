"""The `Idempotency-Key` header in front of a WSGI application."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Iterator
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any

from brokerkit.once.http import HELD, LARGEST, METHODS, Answer, Guard, Request
from brokerkit.once.keys import Held, Keys

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_Raised = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class IdempotencyKeyMiddleware:
    """As `brokerkit.once.asgi.IdempotencyKeyMiddleware`; `caller` and the application get the environ."""

    def __init__(
        self,
        app: WSGIApplication,
        keys: Keys,
        *,
        required: bool = False,
        methods: Collection[str] = METHODS,
        caller: Callable[[WSGIEnvironment], str] | None = None,
        largest_request: int = LARGEST,
        largest_response: int = LARGEST,
    ) -> None:
        self._app = app
        self._caller = caller
        self._guard = Guard(keys, required, methods, largest_request, largest_response)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        line = environ.get("HTTP_IDEMPOTENCY_KEY")
        key = self._guard.key(environ["REQUEST_METHOD"], [] if line is None else [line])
        if key is None:
            return self._app(environ, start_response)
        if isinstance(key, Answer):
            return _give(start_response, key)
        body = _body(environ, self._guard.largest_request)
        if len(body) > self._guard.largest_request:
            return _give(start_response, self._guard.too_large())
        begun = self._guard.begin(key, self._request(environ, body))
        if isinstance(begun, Answer):
            return _give(start_response, begun)
        inner = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), HELD: begun}
        return self._run(inner, start_response, begun)

    def _run(self, environ: WSGIEnvironment, start_response: StartResponse, held: Held) -> Iterable[bytes]:
        started: list[Any] = []
        body = bytearray()

        def start(status: str, headers: list[tuple[str, str]], raised: _Raised | None = None) -> Callable[[bytes], Any]:
            started[:] = [status, headers]
            return body.extend

        parts: Iterable[bytes] = ()
        try:
            parts = self._app(environ, start)
            pieces = iter(parts)
            for piece in pieces:
                body += piece
                if len(body) > self._guard.largest_response:
                    self._guard.outgrown(held, int(started[0][:3]))
                    start_response(*started)
                    through, parts = parts, ()
                    return _Rest(bytes(body), pieces, through)
        except Exception:
            self._guard.failed(held)
            raise
        except BaseException:
            held.abandon()
            raise
        finally:
            _close(parts)
        status, headers = started
        return _give(start_response, self._guard.end(held, Answer(int(status[:3]), headers, bytes(body))))

    def _request(self, environ: WSGIEnvironment, body: bytes) -> Request:
        query = environ.get("QUERY_STRING")
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        caller = None if self._caller is None else self._caller(environ)
        return Request(
            environ["REQUEST_METHOD"],
            f"{path}?{query}" if query else path,
            environ.get("CONTENT_TYPE", ""),
            environ.get("HTTP_AUTHORIZATION", ""),
            body,
            caller,
        )


class _Rest:
    """An answer that is too large to be stored, on its way."""

    def __init__(self, first: bytes, rest: Iterator[bytes], whole: Iterable[bytes]) -> None:
        self._first = first
        self._rest = rest
        self._whole = whole

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        yield from self._rest

    def close(self) -> None:
        _close(self._whole)


def _close(parts: Iterable[bytes]) -> None:
    close = getattr(parts, "close", None)
    if close is not None:
        close()


def _body(environ: WSGIEnvironment, most: int) -> bytes:
    """The request's body, or as much of it as is too much."""
    length = environ.get("CONTENT_LENGTH")
    if not length and not environ.get("wsgi.input_terminated"):
        return b""
    body: bytes = environ["wsgi.input"].read(min(int(length), most + 1) if length else most + 1)
    return body


def _give(start_response: StartResponse, answer: Answer) -> list[bytes]:
    try:
        phrase = HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = "Unknown"
    start_response(f"{answer.status} {phrase}", list(answer.headers))
    return [answer.body]
