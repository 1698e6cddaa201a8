"""A link that answers as a test says, without a server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
from brokerkit_pubsub.link import PublishResponse, PullResponse
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2


class Failed(grpc.RpcError):
    """An answer with a status, as gRPC raises it."""

    def __init__(self, code: grpc.StatusCode, details: str = "", by_id: dict[str, str] | None = None) -> None:
        super().__init__(details)
        self._code, self._details, self._by_id = code, details, by_id or {}

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> list[tuple[str, bytes]]:
        if not self._by_id:
            return []
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason="EXACTLY_ONCE_ACKID_FAILURE", metadata=self._by_id))
        status = status_pb2.Status(code=self._code.value[0], message=self._details, details=[detail])
        return [("grpc-status-details-bin", status.SerializeToString())]


NOTHING = object()
"""An answer that is said to be there and is not."""


class Future:
    def __init__(self, answer: Any, on_cancel: Callable[[], None] = lambda: None) -> None:
        self._answer = answer
        self._on_cancel = on_cancel
        self.was_cancelled = False

    def done(self) -> bool:
        return self._answer is not None

    def cancelled(self) -> bool:
        return self.was_cancelled

    def cancel(self) -> None:
        self.was_cancelled = True
        self._on_cancel()

    def exception(self) -> Any:
        return self._answer if isinstance(self._answer, Exception) else None

    def result(self) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return None if self._answer is NOTHING else self._answer


class FakeLink:
    """`script[method]` holds answers, in order; without one a call succeeds. An answer of None never comes. A call
    that is cancelled stands among the requests."""

    def __init__(self) -> None:
        self.script: dict[str, deque[Any]] = {}
        self.requests: list[tuple[str, Any]] = []
        self.timeouts: list[tuple[str, float]] = []
        self.done: list[Any] = []
        """What each call that was begun wants to be told with."""
        self.closed = False
        self._numbers = iter(range(10**9))

    def will(self, method: str, *answers: Any) -> None:
        self.script.setdefault(method, deque()).extend(answers)

    def asked(self, method: str) -> list[Any]:
        return [request for name, request in self.requests if name == method]

    def call(self, method: str, request: Any, timeout: float) -> Any:
        answer = self._answer(method, request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def begin(self, method: str, request: Any, timeout: float, done: Any = None) -> Future:
        self.timeouts.append((method, timeout))
        self.done.append(done)
        future = Future(self._answer(method, request), lambda: self.requests.append((f"cancel {method}", request)))
        if done is not None and future.done():
            done(future)
        return future

    def close(self) -> None:
        self.closed = True

    def _answer(self, method: str, request: Any) -> Any:
        self.requests.append((method, request))
        answers = self.script.get(method)
        if answers:
            return answers.popleft()
        if method == "Publish":
            return PublishResponse(message_ids=[f"m{next(self._numbers)}" for _ in request.messages])
        if method == "Pull":
            return None
        return object()


def pulled(*ack_ids: str, key: str = "") -> Any:
    answer = PullResponse()
    for ack_id in ack_ids:
        one = answer.received_messages.add()
        one.ack_id = ack_id
        one.message.message_id = ack_id
        one.message.data = b"x"
        one.message.ordering_key = key
    return answer
