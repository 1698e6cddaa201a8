"""The header and the answers, without a server: both middlewares over the same applications, keys in a file."""

from __future__ import annotations

import asyncio
import io
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from brokerkit import once
from brokerkit.once import Keys
from brokerkit.once.asgi import IdempotencyKeyMiddleware as Asgi
from brokerkit.once.http import HELD, Answer, final
from brokerkit.once.wsgi import IdempotencyKeyMiddleware as Wsgi

Handle = Callable[[bytes, Any], tuple[int, list[tuple[str, str]], list[bytes]]]
"""From the body and what is held to the answer, in pieces."""


class Client:
    """Sends requests to an application behind a middleware, and remembers what the application saw."""

    def __init__(self, face: str, keys: Keys) -> None:
        self.face = face
        self.keys = keys
        self.options: dict[str, Any] = {}
        self.seen: list[bytes] = []
        self.handle: Handle = lambda body, held: (
            201,
            [("content-type", "text/plain"), ("x-number", str(len(self.seen)))],
            [b"done ", str(len(self.seen)).encode()],
        )

    def send(
        self,
        key: str | None = '"k-1"',
        body: bytes = b"50",
        method: str = "POST",
        target: str = "/charges",
        **headers: str,
    ) -> Answer:
        pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
        if key is not None:
            pairs.append(("idempotency-key", key))
        return (self._asgi if self.face == "asgi" else self._wsgi)(pairs, body, method, target)

    def _asgi(self, headers: list[tuple[str, str]], body: bytes, method: str, target: str) -> Answer:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            read = b""
            while True:
                message = await receive()
                read += message["body"]
                if not message["more_body"]:
                    break
            self.seen.append(read)
            status, given, pieces = self.handle(read, scope.get(HELD))
            raw = [(name.encode(), value.encode()) for name, value in given]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})

        came: list[Any] = []

        async def take(message: Any) -> None:
            came.append(message)

        halves = [body[: len(body) // 2], body[len(body) // 2 :]]
        messages = [{"type": "http.request", "body": half, "more_body": half is halves[0]} for half in halves]

        async def give() -> Any:
            return messages.pop(0)

        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers],
        }
        asyncio.run(Asgi(app, self.keys, **self.options)(scope, give, take))
        start, *parts = came
        assert [part.get("more_body", False) for part in parts] == [True] * (len(parts) - 1) + [False]
        given = [(name.decode(), value.decode()) for name, value in start["headers"]]
        return Answer(start["status"], given, b"".join(part.get("body", b"") for part in parts))

    def _wsgi(self, headers: list[tuple[str, str]], body: bytes, method: str, target: str) -> Answer:
        def app(environ: Any, start_response: Any) -> Any:
            read = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            self.seen.append(read)
            status, given, pieces = self.handle(read, environ.get(HELD))
            write = start_response(f"{status} Said", given)
            write(pieces[0])
            yield from pieces[1:]

        came: list[Any] = []
        path, _, query = target.partition("?")
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
        for name, value in headers:
            cgi = name.upper().replace("-", "_")
            environ[cgi if cgi == "CONTENT_TYPE" else f"HTTP_{cgi}"] = value

        def start(status: str, given: Any, raised: Any = None) -> Any:
            came[:] = [int(status[:3]), given]
            return lambda data: came.append(data)

        parts = Wsgi(app, self.keys, **self.options)(environ, start)  # type: ignore[arg-type]
        try:
            pieces = list(parts)
        finally:
            if hasattr(parts, "close"):
                parts.close()
        return Answer(came[0], came[1], b"".join([*came[2:], *pieces]))


@pytest.fixture(params=["asgi", "wsgi"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    once.init(url)
    with Keys(url, "api") as keys:
        yield Client(request.param, keys)


def replayed(answer: Answer) -> bool:
    return ("idempotent-replayed", "true") in answer.headers


def test_a_retry_gets_the_first_answer_with_status_headers_and_body(client: Client):
    first = client.send(body=b"\0\xff50")
    assert (first.status, first.body, client.seen) == (201, b"done 1", [b"\0\xff50"])
    again = client.send(body=b"\0\xff50")
    assert (again.status, again.body) == (201, b"done 1")
    assert again.headers == [*first.headers, ("idempotent-replayed", "true")]
    assert client.send(key='"k-2"').body == b"done 2"
    assert len(client.seen) == 2


def test_the_key_is_the_same_with_and_without_quotes(client: Client):
    first = client.send(key='"k-1"')
    assert client.send(key="k-1").body == first.body
    assert len(client.seen) == 1
    assert not replayed(client.send(key=r'"k-\"1\\"'))


@pytest.mark.parametrize("key", ["", '""', '"open', 'a"b', "a b", "a, b", '"a", "b"', "ü", '"tab\t"', "x" * 256])
def test_a_malformed_key_is_a_bad_request(client: Client, key: str):
    answer = client.send(key=key)
    assert (answer.status, client.seen) == (400, [])
    assert ("content-type", "application/problem+json") in answer.headers


def test_without_a_key_it_runs_each_time_unless_a_key_is_demanded(client: Client):
    assert [client.send(key=None).body for _ in range(2)] == [b"done 1", b"done 2"]
    client.options = {"required": True}
    answer = client.send(key=None)
    assert (answer.status, len(client.seen)) == (400, 2)
    assert b"needs an Idempotency-Key header" in answer.body
    assert client.send(key=None, method="GET").status == 201


def test_methods_that_are_idempotent_are_let_through_unless_named(client: Client):
    for _ in range(2):
        assert not replayed(client.send(method="PUT"))
    client.options = {"methods": ["put"]}
    client.send(method="PUT", key='"k-2"')
    assert replayed(client.send(method="PUT", key='"k-2"'))


@pytest.mark.parametrize(
    "other",
    [
        {"body": b"60"},
        {"target": "/refunds"},
        {"target": "/charges?dry=1"},
        {"method": "PATCH"},
        {"content_type": "text/csv"},
        {"authorization": "Bearer of-somebody-else"},
    ],
)
def test_the_same_key_with_another_request_is_unprocessable(client: Client, other: dict[str, Any]):
    client.send()
    answer = client.send(**other)
    assert (answer.status, len(client.seen)) == (422, 1)
    assert b"came with another request before" in answer.body


def test_each_caller_s_keys_are_its_own(client: Client):
    name = "headers" if client.face == "asgi" else "HTTP_X_USER"
    client.options = {
        "caller": lambda found: dict(found[name])[b"x-user"].decode() if client.face == "asgi" else found[name]
    }
    first = client.send(x_user="anna", authorization="one")
    assert client.send(x_user="ben", authorization="one").body == b"done 2"
    assert client.send(x_user="anna", authorization="renewed").body == first.body


def test_while_the_first_is_in_progress_the_second_is_a_conflict(client: Client):
    inner: list[Answer] = []

    def handle(body: bytes, held: Any) -> Any:
        if not inner:
            inner.append(Answer(0, [], b""))
            twin = Client(client.face, client.keys)
            if client.face == "asgi":
                thread = threading.Thread(target=lambda: inner.append(twin.send()))
                thread.start()
                thread.join(20)
            else:
                inner.append(twin.send())
        return 200, [], [b"first"]

    client.handle = handle
    assert client.send().body == b"first"
    assert inner[1].status == 409
    assert ("retry-after", "1") in inner[1].headers


@pytest.mark.parametrize("status", [500, 503, 401, 403, 408, 425, 429])
def test_an_answer_that_says_it_was_not_done_may_be_tried_again(client: Client, status: int):
    good = client.handle
    client.handle = lambda body, held: (status, [], [b"no"])
    assert client.send().status == status
    client.handle = good
    assert client.send().status == 201
    assert replayed(client.send())


@pytest.mark.parametrize("status", [200, 204, 303, 400, 404, 409, 422])
def test_any_other_answer_is_stored(client: Client, status: int):
    client.handle = lambda body, held: (status, [], [b"said"])
    client.send()
    assert replayed(client.send())
    assert final(status)


def test_an_exception_leaves_the_key_failed_and_goes_on(client: Client):
    good = client.handle

    def broken(body: bytes, held: Any) -> Any:
        raise ZeroDivisionError

    client.handle = broken
    with pytest.raises(ZeroDivisionError):
        client.send()
    client.handle = good
    assert client.send().status == 201


def test_a_request_larger_than_the_bound_is_told_so_and_nothing_is_done(client: Client):
    client.options = {"largest_request": 10}
    answer = client.send(body=b"x" * 11)
    assert (answer.status, client.seen) == (413, [])
    assert b"at most 10 bytes" in answer.body
    assert client.send(body=b"x" * 10).status == 201


def test_an_answer_larger_than_the_bound_goes_out_and_retries_are_told_it_was_not_kept(client: Client):
    client.options = {"largest_response": 10}
    client.handle = lambda body, held: (200, [("x-a", "b")], [b"x" * 6] * 5)
    first = client.send()
    assert (first.status, first.headers, first.body) == (200, [("x-a", "b")], b"x" * 30)
    again = client.send()
    assert (again.status, len(client.seen)) == (410, 1)
    assert b"was done with status 200" in again.body
    client.handle = lambda body, held: (500, [], [b"x" * 30])
    assert client.send(key='"k-2"').status == 500
    client.handle = lambda body, held: (200, [], [b"ok"])
    assert client.send(key='"k-2"').status == 200


def test_an_answer_stored_by_the_handler_is_the_one_that_is_given(client: Client, tmp_path: Path):
    def handle(body: bytes, held: Any) -> Any:
        db = sqlite3.connect(tmp_path / "keys.db")
        db.execute("create table if not exists charges (dollars)")
        db.execute("insert into charges values (50)")
        held.finish(Answer(201, [("x-by", "handler")], b"in the transaction").dump(), connection=db)
        if body == b"committed":
            db.commit()
        db.close()
        return 200, [], [b"from the handler"]

    client.handle = handle
    first = client.send(body=b"committed")
    assert (first.status, first.headers, first.body) == (201, [("x-by", "handler")], b"in the transaction")
    assert client.send(body=b"committed").body == first.body
    lost = client.send(key='"k-2"', body=b"forgotten")
    assert (lost.status, b"was not committed" in lost.body) == (500, True)
    assert client.send(key='"k-2"', body=b"forgotten").status == 500
    assert len(client.seen) == 3


@pytest.mark.parametrize("when", ["while it begins", "while it runs"])
def test_a_cancelled_request_is_left_to_its_lease(tmp_path: Path, when: str):
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    once.init(url)
    with Keys(url, "api", lease=0.5) as keys:
        running = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            running.set()
            await asyncio.sleep(60)

        middleware = Asgi(app, keys)
        begin = middleware._guard.begin

        def slowly(*arguments: Any) -> Any:
            time.sleep(0.3)
            return begin(*arguments)

        if when == "while it begins":
            middleware._guard.begin = slowly  # type: ignore[method-assign]

        async def give() -> Any:
            return {"type": "http.request", "body": b"50"}

        async def main() -> None:
            headers = [(b"idempotency-key", b'"k-1"')]
            scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
            task = asyncio.create_task(middleware(scope, give, give))  # type: ignore[arg-type]
            if when == "while it begins":
                await asyncio.sleep(0.1)
            else:
                await asyncio.wait_for(running.wait(), 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while len(asyncio.all_tasks()) > 1:  # what was begun is still on its way
                await asyncio.sleep(0.05)

        asyncio.run(main())
        assert keys._store.read("api", "k-1").state == "in_progress"  # type: ignore[union-attr]
        time.sleep(0.5)
        identity = keys._store.read("api", "k-1")
        assert identity is not None
        assert identity.lease_left < 0, "somebody still renews it"


def test_while_the_store_is_away_nothing_is_done(client: Client, tmp_path: Path):
    client.keys._store._timeout = 0.2
    client.send()
    with sqlite3.connect(tmp_path / "keys.db") as db:
        db.execute("drop table brokerkit_keys")
    answer = client.send(key='"k-2"')
    assert (answer.status, len(client.seen)) == (503, 1)
    assert b"nothing was done" in answer.body
    assert b"keys.db" not in answer.body
