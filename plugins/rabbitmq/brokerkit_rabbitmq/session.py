"""One connection to RabbitMQ with one channel, and the thread that runs pika's I/O loop for it.

pika's objects belong to that thread; everybody else comes in by `post`, `call` and an `Inbox`. The session ends once:
when the channel or the connection closes, whoever closed it. Nothing reconnects here.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import pika
import pika.exceptions
from pika import frame, spec

from brokerkit.errors import BrokerkitError, ConnectionLost
from brokerkit_rabbitmq.errors import translated

logger = logging.getLogger("brokerkit.rabbitmq")

_METHOD, _HEADER, _BODY = 1, 2, 3
_CONTENT = (_HEADER, _BODY)
_SIZE = struct.Struct(">I").unpack_from
_BODY_SIZE = struct.Struct(">Q").unpack_from

CHANNEL = 1
"""The number of a session's only channel."""
DELIVER, RETURN, ACK, NACK = (
    struct.pack(">I", method.INDEX)
    for method in (spec.Basic.Deliver, spec.Basic.Return, spec.Basic.Ack, spec.Basic.Nack)
)
"""Methods as they begin on the wire."""


class Connection(pika.SelectConnection):  # type: ignore[misc]
    """pika's connection with a short way in for what comes by the thousand: deliveries and confirms.

    pika looks every frame up in a callback table, decodes all of it, and ends the connection when a header table holds
    a date that Python cannot. Here the methods that somebody asked for are handed on undecoded. One of pika's
    protected methods is replaced (pika 1.4).
    """

    methods: Mapping[bytes, Callable[[bytes], None]] = MappingProxyType({})
    """Who takes the arguments of a method without content."""
    contents: Mapping[bytes, Callable[[bytes, bytes, bytes], None]] = MappingProxyType({})
    """Who takes the arguments, the content header and the body of a method with content."""
    after_read: Callable[[], None] = staticmethod(lambda: None)
    """Called once after each chunk of bytes from the socket."""
    _frame_buffer: bytes
    _content: Callable[[bytes, bytes, bytes], None] | None = None
    """Who takes the content that is on its way; of it, what came so far:"""
    _arguments = _header = b""
    _parts: list[bytes]
    _left = 0

    def _on_data_available(self, data_in: bytes) -> None:
        if not self._opened:
            super()._on_data_available(data_in)
            return
        buffer = self._frame_buffer + data_in
        contents, methods = self.contents, self.methods
        offset, end = 0, len(buffer)
        while end - offset >= 8:
            last = offset + 7 + _SIZE(buffer, offset + 3)[0]
            if last >= end:
                break
            if buffer[last] != spec.FRAME_END:
                raise pika.exceptions.InvalidFrameError("a frame without its end")
            kind, payload = buffer[offset], buffer[offset + 7 : last]
            if kind in _CONTENT and self._content is not None:
                self._add(self._content, kind, payload)
            elif kind == _METHOD and payload[:4] in contents:
                self._content, self._arguments = contents[payload[:4]], payload[4:]
            elif kind == _METHOD and payload[:4] in methods:
                methods[payload[:4]](payload[4:])
            else:
                self._process_frame(frame.decode_frame(buffer[offset : last + 1])[1])
            offset = last + 1
        self.bytes_received += offset
        self._frame_buffer = buffer[offset:]
        self.after_read()

    def _add(self, take: Callable[[bytes, bytes, bytes], None], kind: int, payload: bytes) -> None:
        """The header or a part of the body."""
        if kind == _HEADER:
            self._header, self._left, self._parts = payload, _BODY_SIZE(payload, 4)[0], []
        else:
            self._left -= len(payload)
            self._parts.append(payload)
        if not self._left:
            self._content = None
            take(self._arguments, self._header, b"".join(self._parts))


class Session:
    """Connected once it is made; ends by `close` or on its own.

    Raises ConnectionLost, AccessRefused or NotFound (the vhost) when it cannot be opened within `timeout` seconds.
    """

    def __init__(self, name: str, parameters: pika.ConnectionParameters, timeout: float) -> None:
        self.where = f"RabbitMQ at {parameters.host}:{parameters.port}"
        self.deadline = time.monotonic() + timeout
        """Until when a `call` waits that says nothing else."""
        self.over: str | None = None
        """Why the session ended; None while it lives."""
        self.closing = False
        self.channel: Any = None
        self._vhost = parameters.virtual_host
        self._ended: Callable[[str], None] = lambda _: None
        self._disconnected: Callable[[str], None] = self._ended
        self._error: BrokerkitError | None = None
        self._pending: set[Future[Any]] = set()
        opened: Future[Any] = Future()
        self.connection = Connection(
            parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=partial(self._on_channel, opened)),
            on_open_error_callback=self._on_closed,
            on_close_callback=self._on_closed,
        )
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        try:
            self._wait(opened, timeout)
        except BaseException:
            self.abort()
            raise
        self.server: Mapping[str, Any] = self.connection.server_properties or {}
        version = str(self.server.get("version", "")).split(".")[:2]
        self.version = tuple(int(part) for part in version if part.isdigit())

    def tell(self, ended: Callable[[str], None], disconnected: Callable[[str], None]) -> None:
        """From now on the end is told, on the I/O thread: `ended(reason)`, and then `disconnected(reason)` where nobody
        closed the session. Raises ConnectionLost when it is over already."""
        self._ended, self._disconnected = ended, disconnected
        if self.over is not None:
            raise ConnectionLost(self.over)

    def post(self, callback: Callable[[], None]) -> None:
        """Runs `callback` on the I/O thread; it must not raise. Nothing happens once the session is over."""
        self.connection.ioloop.add_callback_threadsafe(callback)

    def call(self, method: Callable[..., object], *arguments: Any, within: float | None = None, **options: Any) -> Any:
        """Runs `method(channel, …, callback=…)`, as pika's channel has them, on the I/O thread; returns the answer."""
        answer: Future[Any] = Future()

        def run() -> None:
            try:
                method(self.channel, *arguments, callback=partial(_answer, answer), **options)
            except pika.exceptions.AMQPError as error:
                _answer(answer, error=self._translated(error))

        self.post(run)
        return self._wait(answer, self.deadline - time.monotonic() if within is None else within)

    def write(self, data: bytes) -> None:
        """Puts whole frames onto the wire. On the I/O thread only."""
        self.connection._output_marshaled_frames((data,))

    def unsent(self) -> int:
        """Bytes that the socket has not taken yet."""
        transport = self.connection._transport
        return 0 if transport is None else int(transport.get_write_buffer_size())

    def end(self, error: Exception) -> None:
        """Ends the session for a reason of our own, or the channel's. On the I/O thread only."""
        self._end(error)
        self._close()

    def close(self, timeout: float, finish: Callable[..., object] | None = None) -> None:
        """Closes channel and connection, or drops them when that takes longer than `timeout`. First calls `finish`."""
        deadline = time.monotonic() + timeout
        self.closing = True
        if finish is not None:
            with suppress(BrokerkitError):  # over, or no answer in time: the end says what became of everything
                self.call(finish, within=timeout * 0.8)
        self.post(self._close)
        self._thread.join(max(0.1, deadline - time.monotonic()))
        if self._thread.is_alive():
            self.abort()

    def abort(self) -> None:
        """Drops the connection."""
        self.closing = True
        self.post(self._drop)
        self._thread.join(2.0)

    def _wait(self, answer: Future[Any], timeout: float) -> Any:
        """For an answer, or the end of the session."""
        timeout = max(0.1, timeout)
        self._pending.add(answer)
        try:
            if self._error is not None:
                raise self._error
            return answer.result(timeout)
        except TimeoutError:
            raise ConnectionLost(f"{self.where} gave no answer within {timeout:.3g} s") from None
        finally:
            self._pending.discard(answer)

    # ------------------------------------------------------------ on the I/O thread

    def _run(self) -> None:
        try:
            self.connection.ioloop.start()
        except Exception as error:
            logger.exception("the I/O loop of %s failed", self.where)
            self._end(ConnectionLost(f"the client failed: {type(error).__name__}"))
        finally:
            self._end(ConnectionLost(f"the connection to {self.where} is closed"))
            transport = self.connection._transport
            if transport is not None and transport._sock is not None:
                transport._sock.close()
            self.connection.ioloop.close()

    def _on_channel(self, opened: Future[Any], channel: Any) -> None:
        self.channel = channel
        channel.add_on_close_callback(lambda _, error: self.end(error))
        _answer(opened)

    def _on_closed(self, _: Any, error: Exception) -> None:
        self._end(error)
        self.connection.ioloop.stop()

    def _end(self, error: Exception) -> None:
        if self._error is None:
            self._error = self._translated(error)
            self.over = str(self._error)
            for answer in list(self._pending):
                _answer(answer, error=self._error)
            self._ended(self.over)
            if not self.closing:
                self._disconnected(self.over)

    def _translated(self, error: Exception) -> BrokerkitError:
        return translated(error, self.where, self._vhost, connecting=self.channel is None)

    def _close(self) -> None:
        if self.connection.is_open:
            self.connection.close()

    def _drop(self) -> None:
        """Without a word to the broker: the socket is closed when the loop has stopped."""
        connection = self.connection
        if connection._transport is not None or connection.is_closing or connection.is_closed:
            connection.ioloop.stop()
        else:  # not even connected: pika cleans up, and says that it is closed
            connection.close()
            connection.ioloop.call_later(1.0, connection.ioloop.stop)


def _answer(answer: Future[Any], value: Any = None, error: Exception | None = None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(value)


_Item = TypeVar("_Item")


class Inbox(Generic[_Item]):
    """What other threads hand to the I/O thread: many items, one wake-up."""

    def __init__(self, session: Session, wake: Callable[[], None]) -> None:
        self._session = session
        self._wake = wake
        self._lock = threading.Lock()
        self._items: list[_Item] = []

    def put(self, item: _Item) -> None:
        """Raises ConnectionLost when the session is over; otherwise `take` gets it, at its end at the latest."""
        with self._lock:
            if self._session.over is not None:
                raise ConnectionLost(self._session.over)
            self._items.append(item)
            if len(self._items) > 1:
                return
        self._session.post(self._wake)

    def take(self) -> list[_Item]:
        """Everything that was put since."""
        with self._lock:
            items, self._items = self._items, []
        return items
