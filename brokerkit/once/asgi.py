"""The `Idempotency-Key` header in front of an ASGI application, on a server that runs asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from brokerkit.once.http import HELD, LARGEST, METHODS, Answer, Guard, Request
from brokerkit.once.keys import Held, Keys

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class IdempotencyKeyMiddleware:
    """Runs the application once for each key, and gives its answer again to every retry.

    400 where the header is missing and `required`, or malformed; 409 while the first request is in progress; 422 when
    the key came with another request; 413 for a request larger than `largest_request` bytes; 503 while the store is
    away, and then nothing was done. Which answers are stored, `brokerkit.once.http.final` says. An answer larger than
    `largest_response` bytes goes out and is not stored: retries get 410. An exception leaves the key failed.

    `caller` says who asks, from the scope: each caller's keys are its own. Without it all callers share the keys, and
    one that comes with other credentials (`Authorization`) gets 422, never somebody else's answer. The application
    finds its `Held` under `brokerkit.held` in the scope. The store is asked in threads.
    """

    def __init__(
        self,
        app: App,
        keys: Keys,
        *,
        required: bool = False,
        methods: Collection[str] = METHODS,
        caller: Callable[[Scope], str] | None = None,
        largest_request: int = LARGEST,
        largest_response: int = LARGEST,
    ) -> None:
        self._app = app
        self._caller = caller
        self._guard = Guard(keys, required, methods, largest_request, largest_response)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        key = self._guard.key(scope["method"], _lines(scope, b"idempotency-key"))
        if key is None:
            return await self._app(scope, receive, send)
        if isinstance(key, Answer):
            return await _give(send, key)
        body = await _body(receive, self._guard.largest_request)
        if body is None:
            return None  # nobody waits for an answer
        if len(body) > self._guard.largest_request:
            return await _give(send, self._guard.too_large())
        beginning = asyncio.create_task(asyncio.to_thread(self._guard.begin, key, self._request(scope, body)))
        try:
            begun = await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(_abandon)
            raise
        if isinstance(begun, Answer):
            return await _give(send, begun)
        return await self._run(scope, body, receive, send, begun)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send, held: Held) -> None:
        extensions = {
            name: value
            for name, value in (scope.get("extensions") or {}).items()
            if not name.startswith("http.response.")  # ways past the recorder
        }
        recorder = _Recorder(self._guard, held, send)
        try:
            await self._app({**scope, HELD: held, "extensions": extensions}, _again(body, receive), recorder)
        except Exception:
            if not recorder.settled:
                await asyncio.to_thread(self._guard.failed, held)
            raise
        except BaseException:
            held.abandon()
            raise
        if not recorder.settled:  # it ended without an answer, which the server makes an error
            await asyncio.to_thread(self._guard.failed, held)

    def _request(self, scope: Scope, body: bytes) -> Request:
        query = scope.get("query_string") or b""
        target = scope["path"] + (f"?{query.decode('latin-1')}" if query else "")
        content_type, authorization = (", ".join(_lines(scope, name)) for name in (b"content-type", b"authorization"))
        caller = None if self._caller is None else self._caller(scope)
        return Request(scope["method"], target, content_type, authorization, body, caller)


class _Recorder:
    """Takes the application's answer in, and sends it when it is stored."""

    def __init__(self, guard: Guard, held: Held, send: Send) -> None:
        self._guard = guard
        self._held = held
        self._send = send
        self._start: Message = {}
        self._body = bytearray()
        self._through = False
        self.settled = False

    async def __call__(self, message: Message) -> None:
        if self._through:
            return await self._send(message)
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body" and not self.settled:
            self._body += message.get("body", b"")
            if len(self._body) > self._guard.largest_response:
                await self._pass_through(bool(message.get("more_body")))
            elif not message.get("more_body"):
                self.settled = True
                await _give(self._send, await asyncio.to_thread(self._guard.end, self._held, self._answer()))
        return None

    async def _pass_through(self, more: bool) -> None:
        self.settled = self._through = True
        await asyncio.to_thread(self._guard.outgrown, self._held, self._start["status"])
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": bytes(self._body), "more_body": more})
        self._body.clear()

    def _answer(self) -> Answer:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._start.get("headers", ())]
        return Answer(self._start["status"], headers, bytes(self._body))


def _abandon(beginning: asyncio.Task[Held | Answer]) -> None:
    """Leaves to its lease what was begun for a request that is gone."""
    begun = None if beginning.cancelled() or beginning.exception() else beginning.result()
    if isinstance(begun, Held):
        begun.abandon()


def _lines(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for found, value in scope["headers"] if found.lower() == name]


async def _body(receive: Receive, most: int) -> bytes | None:
    """The request's body, or as much of it as is too much; None when the client is gone."""
    body = bytearray()
    while len(body) <= most:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Hands the body over once, and then what comes after it."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def take() -> Message:
        return left.pop() if left else await receive()

    return take


async def _give(send: Send, answer: Answer) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})
