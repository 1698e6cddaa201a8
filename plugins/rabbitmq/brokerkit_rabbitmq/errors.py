"""pika's exceptions as brokerkit's."""

from __future__ import annotations

import pika.exceptions

from brokerkit.errors import (
    AccessRefused,
    BrokerkitError,
    ConfigurationError,
    ConnectionLost,
    NotFound,
    NotSupported,
)


def translated(error: Exception, where: str, vhost: str, connecting: bool) -> BrokerkitError:
    """What `error` means, naming the node."""
    if isinstance(error, BrokerkitError):
        return error
    closed = _closed_by_broker(error)
    if closed is not None:
        return _by_code(*closed, where)
    if isinstance(error, (pika.exceptions.ProbableAuthenticationError, pika.exceptions.AuthenticationError)):
        return AccessRefused(f"{where} refused the login: check the user, the password and the SASL mechanism")
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError):
        return AccessRefused(f"{where} refused access to vhost {vhost!r}")
    if isinstance(error, pika.exceptions.IncompatibleProtocolError):
        return ConnectionLost(f"{where} closed the connection before AMQP began: check the port, TLS and the network")
    if isinstance(error, pika.exceptions.AMQPHeartbeatTimeout):
        return ConnectionLost(f"{where} missed its heartbeats")
    return ConnectionLost(f"{'cannot reach' if connecting else 'lost'} {where}: {_cause(error)}")


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


def _by_code(code: int, text: str, where: str) -> BrokerkitError:
    message = f"{where}: {text}"
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
