"""Calls to a service that takes idempotency keys, from the handler of a message."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self
from urllib.parse import urlsplit

from brokerkit.errors import ConfigurationError, NoFinalAnswer, WindowPassed
from brokerkit.events import backoffs
from brokerkit.once.http import LARGEST, Answer, final, packed, unpacked
from brokerkit.once.keys import Held, Keys, derived_key


@dataclass(frozen=True, slots=True)
class Call:
    """A request. The key goes into its header when it is sent."""

    method: str
    url: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def dump(self) -> bytes:
        return packed([self.method, self.url, dict(self.headers)], self.body)

    @classmethod
    def load(cls, stored: bytes) -> Self:
        (method, url, headers), body = unpacked(stored)
        return cls(method, url, body, headers)


def send(call: Call, timeout: float = 30.0) -> Answer:
    """Sends it by the standard library, follows no redirect, and raises OSError or http.client.HTTPException.

    Raises ConfigurationError for an URL that is not of HTTP, and for an answer of more than a mebibyte."""
    parts = urlsplit(call.url)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if parts.scheme not in kinds or not parts.hostname:
        raise ConfigurationError("a call goes to http://host/path or https://host/path")
    connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=timeout)
    try:
        target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        connection.request(call.method, target, call.body, dict(call.headers))
        response = connection.getresponse()
        body = response.read(LARGEST + 1)
        if len(body) > LARGEST:
            raise ConfigurationError(f"the answer has more than {LARGEST} bytes: give a `send` of your own to Calls")
        return Answer(response.status, response.getheaders(), body)
    finally:
        connection.close()


def _final(answer: Answer) -> bool:
    """409: the first attempt is still in progress there."""
    return final(answer.status) and answer.status != 409


class Calls:
    """Calls one service for the messages of one consumer, each step of each message once. Thread-safe.

    The key derives from the keys' name, the message's id and the step, so that a message that is handed over again
    uses the same one. What is sent is put down before it is sent the first time; every later attempt, after a crash
    too, sends the same bytes. `window`: how long the service remembers keys, at most as long as `keys` are kept.
    `send` may be replaced; `final` says which of its answers are kept.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        window: timedelta,
        attempts: int = 3,
        send: Callable[[Call], Answer] = send,
        final: Callable[[Answer], bool] = _final,
        header: str = "Idempotency-Key",
    ) -> None:
        if not isinstance(window, timedelta):
            raise ConfigurationError(f"window is a datetime.timedelta, not {type(window).__name__}")
        if not timedelta(0) < window <= keys.keep:
            raise ConfigurationError(
                f"the service remembers keys for {window} and these are kept for {keys.keep}: keep them at least as "
                "long, for what is forgotten here first is sent as if it were new"
            )
        if attempts < 1:
            raise ConfigurationError(f"a call has at least one attempt, not {attempts}")
        self._keys = keys
        self._window = window
        self._attempts = attempts
        self._send = send
        self._final = final
        self._header = header

    def call(self, message_id: str, step: str, make: Callable[[], Call], *, wait: float = 0.0) -> Answer:
        """The service's answer to what `make` returns, from the service or, once it is final, from the store.

        `make` is called when nothing was put down yet. Raises NoFinalAnswer after so many attempts without one: let
        the message come again. Raises WindowPassed when the service may have forgotten the key: find out there what
        happened. Raises as `Keys.hold` besides."""
        key = derived_key(self._keys.name, message_id, step)
        with self._keys.hold(key, step, wait=wait) as held:
            if held.fresh:
                if held.request is None:
                    held.remember(make().dump())
                held.finish(self._answer(held, message_id, step).dump())
            return Answer.load(held.result)

    def _answer(self, held: Held, message_id: str, step: str) -> Answer:
        stored = Call.load(held.request or b"")
        call = Call(stored.method, stored.url, stored.body, {**stored.headers, self._header: f'"{held.key}"'})
        began = time.monotonic()
        last: Answer | None = None
        error: Exception | None = None
        for attempt, pause in enumerate(backoffs(), 1):
            if held.age + time.monotonic() - began >= self._window.total_seconds():
                raise WindowPassed(
                    f"step {step!r} of message {message_id!r} was begun {timedelta(seconds=round(held.age))} ago, and "
                    f"the service remembers key {held.key} for {self._window}: look there whether it happened, before "
                    "anything is sent again"
                )
            held.check()
            try:
                last, error = self._send(call), None
            except (OSError, http.client.HTTPException) as failure:
                last, error = None, failure
            if last is not None and self._final(last):
                return last
            if attempt == self._attempts:
                break
            time.sleep(pause)
        said = f"status {last.status}" if last is not None else f"{type(error).__name__}: {error}"
        raise NoFinalAnswer(
            f"step {step!r} of message {message_id!r} has no final answer after {self._attempts} attempts, the last: "
            f"{said}. It may have happened: send it again with the same key, as this does when the message comes again",
            last,
        ) from error
