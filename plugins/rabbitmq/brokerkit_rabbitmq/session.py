"""One connection to RabbitMQ with one channel, and the thread that runs pika's I/O loop for it.

pika's objects belong to that thread; everybody else comes in by `post` and `call`. The session ends once: when the
channel or the connection closes, whoever closed it. Nothing reconnects here.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pika
import pika.exceptions
from pika import frame, spec

from brokerkit.errors import (
    AccessRefused,
    BrokerkitError,
    ConfigurationError,
    ConnectionLost,
    NotFound,
    NotSupported,
)

logger = logging.getLogger("brokerkit.rabbitmq")

Request = Callable[[Any, Callable[[Any], None]], object]
"""What `call` runs on the I/O thread: (channel, answered)."""


class Connection(pika.SelectConnection):  # type: ignore[misc]
    """pika's connection with a short way in for what comes by the thousand: deliveries and confirms.

    pika looks every frame up in a callback table, decodes all of it, and ends the connection when a header table holds
    a date that Python cannot. Here a delivery is handed on undecoded. Two of pika's protected methods are replaced
    (pika 1.4).
    """

    confirms: Callable[[Any], None] | None = None
    """Takes basic.ack and basic.nack of the broker."""
    deliveries: Callable[[bytes, bytes, bytes], None] | None = None
    """Takes the arguments of basic.deliver, the content header and the body."""
    after_read: Callable[[], None] | None = None
    """Called once after each chunk of bytes from the socket."""
    _frame_buffer: bytes
    _method: bytes | None = None
    """Of a delivery that is not whole yet, as the next three."""
    _header = b""
    _left = 0
    _parts: list[bytes]

    def _on_data_available(self, data_in: bytes) -> None:
        buffer = self._frame_buffer + data_in
        offset, end = 0, len(buffer)
        while end - offset >= 8:
            kind, size = buffer[offset], _SIZE(buffer, offset + 3)[0]
            if kind == 65:
                self._frame_buffer = b""
                super()._on_data_available(buffer[offset:])
                return
            start, last = offset + 7, offset + 7 + size
            if last >= end:
                break
            if buffer[last] != spec.FRAME_END:
                raise pika.exceptions.InvalidFrameError("a frame without its end")
            self.bytes_received += size + 8
            if kind == 1 and self.deliveries is not None and buffer[start : start + 4] == _DELIVER:
                self._method = buffer[start + 4 : last]
            elif self._method is not None and kind in (2, 3):
                self._content(kind, buffer[start:last])
            else:
                self._frame_buffer = b""
                self._process_frame(frame.decode_frame(buffer[offset : last + 1])[1])
            offset = last + 1
        self._frame_buffer = buffer[offset:]
        if self.after_read is not None:
            self.after_read()

    def _content(self, kind: int, payload: bytes) -> None:
        """The header or a part of the body of a delivery."""
        if kind == 2:
            self._header = payload
            self._left = _BODY_SIZE(payload, 4)[0]
            self._parts = []
            body = b""
        else:
            self._left -= len(payload)
            body = payload
            if self._left or self._parts:
                self._parts.append(payload)
                body = b"" if self._left else b"".join(self._parts)
        if not self._left and self.deliveries is not None and self._method is not None:
            method, self._method = self._method, None
            self.deliveries(method, self._header, body)

    def _process_frame(self, frame_value: Any) -> None:
        if frame_value.frame_type == spec.FRAME_METHOD and self.confirms is not None:
            method = frame_value.method
            if type(method) is spec.Basic.Ack or type(method) is spec.Basic.Nack:
                self.confirms(method)
                return
        super()._process_frame(frame_value)


_SIZE = struct.Struct(">I").unpack_from
_BODY_SIZE = struct.Struct(">Q").unpack_from
_DELIVER = b"\x00\x3c\x00\x3c"


class Session:
    """Opened by `open`; ends by `close` or on its own, then `ended(reason)` is called once on the I/O thread."""

    def __init__(self, name: str, ended: Callable[[str], None]) -> None:
        self.over: str | None = None
        """Why the session ended; None while it lives."""
        self.connection: Any = None
        self.channel: Any = None
        self.version: tuple[int, ...] = ()
        self.server: dict[str, Any] = {}
        self.closing = False
        self._ended = ended
        self._error: BrokerkitError | None = None
        self._opened: Future[None] = Future()
        self._pending: set[Future[Any]] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def open(self, parameters: pika.ConnectionParameters, timeout: float) -> None:
        """Connects and opens the channel. Raises ConnectionLost, AccessRefused or NotFound (the vhost)."""
        self.where = f"{parameters.host}:{parameters.port}"
        self._parameters = parameters
        self._thread.start()
        try:
            self._opened.result(timeout)
        except TimeoutError:
            self.abort()
            raise ConnectionLost(f"RabbitMQ at {self.where} gave no answer within {timeout:g} s") from None

    def post(self, callback: Callable[[], None]) -> None:
        """Runs `callback` on the I/O thread; it must not raise. Nothing happens once the session is over."""
        self.connection.ioloop.add_callback_threadsafe(callback)

    def call(self, request: Request, timeout: float) -> Any:
        """Runs a request on the I/O thread and waits for the broker's answer to it."""
        answer: Future[Any] = Future()

        def run() -> None:
            self._pending.add(answer)
            if self._error is not None:
                self._fail_pending(self._error)
                return
            try:
                request(self.channel, lambda method: _answer(answer, method))
            except pika.exceptions.AMQPError as error:
                _answer(answer, error=self.translate(error))

        if self._error is not None:
            raise self._error
        self.post(run)
        deadline = time.monotonic() + timeout
        while True:
            try:
                return answer.result(min(0.5, max(0.0, deadline - time.monotonic())))
            except TimeoutError:
                if self._error is not None:
                    raise self._error from None
                if time.monotonic() >= deadline:
                    raise ConnectionLost(f"RabbitMQ at {self.where} gave no answer within {timeout:g} s") from None
            finally:
                self._pending.discard(answer)

    def write(self, data: bytes) -> None:
        """Puts whole frames onto the wire. On the I/O thread only."""
        self.connection._output_marshaled_frames((data,))

    def unsent(self) -> int:
        """Bytes that the socket has not taken yet."""
        transport = self.connection._transport
        return 0 if transport is None else int(transport.get_write_buffer_size())

    def end(self, error: Exception) -> None:
        """Ends the session for a reason of our own. On the I/O thread only."""
        self._end(error)
        self._close_connection()

    def failure(self) -> BrokerkitError:
        return self._error or ConnectionLost(f"the session with RabbitMQ at {self.where} is over")

    def close(self, timeout: float) -> None:
        """Closes channel and connection, or drops them when that takes longer than `timeout`."""
        self.closing = True
        if self.connection is not None:
            self.post(self._close_connection)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
            if self._thread.is_alive():
                self.abort()

    def abort(self) -> None:
        """Drops the connection."""
        self.closing = True
        if self.connection is not None:
            self.post(self._drop)
        if threading.current_thread() is not self._thread:
            self._thread.join(2.0)

    # ------------------------------------------------------------ on the I/O thread

    def _run(self) -> None:
        try:
            self.connection = Connection(
                self._parameters,
                on_open_callback=self._on_open,
                on_open_error_callback=self._on_closed,
                on_close_callback=self._on_closed,
            )
            self.connection.ioloop.start()
        except Exception as error:
            logger.exception("the I/O loop of %s failed", self.where)
            self._end(ConnectionLost(f"the client failed: {type(error).__name__}"))
            self._drop()
        finally:
            self._end(ConnectionLost(f"the connection to RabbitMQ at {self.where} is closed"))
            if self.connection is not None:
                self._close_socket()
                self.connection.ioloop.close()

    def _on_open(self, connection: Any) -> None:
        self.server = {
            name: value
            for name, value in (connection.server_properties or {}).items()
            if name in ("product", "version", "cluster_name", "platform")
        }
        self.version = tuple(int(part) for part in str(self.server.get("version", "")).split(".")[:2] if part.isdigit())
        connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:
        self.channel = channel
        channel.add_on_close_callback(self._on_channel_closed)
        _answer(self._opened, None)

    def _on_channel_closed(self, _: Any, error: Exception) -> None:
        self._end(error)
        self._close_connection()

    def _on_closed(self, connection: Any, error: Exception) -> None:
        self._end(error)
        connection.ioloop.stop()

    def _end(self, error: Exception) -> None:
        if self._error is not None:
            return
        self._error = self.translate(error)
        self.over = str(self._error)
        self._fail_pending(self._error)
        _answer(self._opened, error=self._error)
        self._ended(self.over)

    def _fail_pending(self, error: BrokerkitError) -> None:
        for answer in list(self._pending):
            _answer(answer, error=error)

    def _close_connection(self) -> None:
        if self.connection.is_open:
            self.connection.close()
        elif not self.connection.is_closed and not self.connection.is_closing:
            self._drop()

    def _drop(self) -> None:
        try:
            if self.connection.is_open or self.connection.is_closing:
                self.connection._terminate_stream(pika.exceptions.ConnectionClosedByClient(0, "dropped"))
            elif not self.connection.is_closed:
                self.connection.close()
        except (pika.exceptions.AMQPError, AssertionError, AttributeError):
            logger.debug("pika could not drop %s", self.where, exc_info=True)
        finally:
            self.connection.ioloop.call_later(1.0, self.connection.ioloop.stop)

    def _close_socket(self) -> None:
        transport = self.connection._transport
        if transport is not None and transport._sock is not None:
            transport._sock.close()

    # ------------------------------------------------------------ errors

    def translate(self, error: Exception) -> BrokerkitError:
        """pika's exceptions as brokerkit's, naming the node."""
        if isinstance(error, BrokerkitError):
            return error
        where = f"RabbitMQ at {self.where}"
        closed = _closed_by_broker(error)
        if closed is not None:
            return _by_code(closed[0], f"{where}: {closed[1]}", closed[1])
        if isinstance(error, (pika.exceptions.ProbableAuthenticationError, pika.exceptions.AuthenticationError)):
            return AccessRefused(f"{where} refused the login: check the user, the password and the SASL mechanism")
        if isinstance(error, pika.exceptions.ProbableAccessDeniedError):
            return AccessRefused(f"{where} refused access to vhost {self._parameters.virtual_host!r}")
        if isinstance(error, pika.exceptions.IncompatibleProtocolError):
            return ConnectionLost(
                f"{where} closed the connection before AMQP began: check the port, TLS and the network"
            )
        if isinstance(error, pika.exceptions.AMQPHeartbeatTimeout):
            return ConnectionLost(f"{where} missed its heartbeats")
        cause = _cause(error)
        return ConnectionLost(f"cannot reach {where}: {cause}" if self.channel is None else f"lost {where}: {cause}")


def _answer(answer: Future[Any], value: Any = None, error: Exception | None = None) -> None:
    if not answer.done():
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value)


def _closed_by_broker(error: Exception) -> tuple[int, str] | None:
    """Code and text of a close that came from the broker, also inside pika's guesses about it."""
    if isinstance(error, (pika.exceptions.ChannelClosedByBroker, pika.exceptions.ConnectionClosedByBroker)):
        return int(error.reply_code), str(error.reply_text)
    text = str(error.args[0]) if error.args else ""
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError) and "ConnectionClosedByBroker: (" in text:
        code, _, rest = text.partition("ConnectionClosedByBroker: (")[2].partition(")")
        if code.isdigit():
            return int(code), rest.strip(" '\"")
    return None


def _by_code(code: int, message: str, text: str) -> BrokerkitError:
    if code == 404 or (code == 530 and "not found" in text):
        return NotFound(message)
    if code in (402, 403, 405, 530):
        return AccessRefused(message)
    if code == 406 and "timed out" not in text and "unknown delivery tag" not in text:
        return ConfigurationError(message)
    if code == 540:
        return NotSupported(message)
    return ConnectionLost(message)


def _cause(error: BaseException) -> str:
    """The innermost thing that pika wrapped."""
    while True:
        inner = [each for each in error.args if isinstance(each, BaseException)]
        inner += getattr(error, "exceptions", ())
        if isinstance(getattr(error, "exception", None), BaseException):
            inner.append(error.exception)  # type: ignore[attr-defined]
        if not inner:
            return str(error) or type(error).__name__
        error = inner[-1]
