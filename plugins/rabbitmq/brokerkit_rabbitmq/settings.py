"""What a RabbitMQ URL may say, and the pika parameters that follow from it."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from brokerkit.errors import ConfigurationError
from brokerkit.plugins import Url
from brokerkit.tls import TlsSettings

if TYPE_CHECKING:
    import pika

DEFAULT_HEARTBEAT = 10
"""Seconds. A dead peer is noticed after 15 s here and after 20 s by the broker."""


class RabbitSettings(TlsSettings):
    """`rabbitmq://user:password@host:port,host:port/vhost?…`; `amqps://` is the same with TLS."""

    queue: Literal["quorum", "classic"] = "quorum"
    """The type of queues that are declared. Classic ones live on one node."""
    persistent: bool = True
    """False: messages are transient, and a classic queue forgets them when its node dies."""
    new_queue_wait: float = Field(default=1.2, ge=0)
    """Seconds for which a quorum queue that was just created is not trusted. A node notes its members up to a second
    later (`auto_save` of ra's `ra_directory`); when all nodes are killed before, what was confirmed is lost with the
    queue (3.10, 4.0 and 4.3: brokerkit's tests). `declare` waits, and so does the first confirm of each new delay."""
    tls_verify: bool = True
    """False: takes any certificate, also of another host."""
    sasl: Literal["plain", "external"] = "plain"
    """`external`: the client certificate says who we are."""
    max_body_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    """The broker's `max_message_size`; larger bodies are refused here, for the broker would close the channel."""


def _table(text: str) -> Mapping[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


CLIENT: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "blocked_connection_timeout": (float, "seconds"),
    "channel_max": (int, "a whole number"),
    "client_properties": (_table, "a JSON object"),
    "connection_attempts": (int, "a whole number"),
    "frame_max": (int, "a whole number"),
    "heartbeat": (int, "whole seconds"),
    "locale": (str, "text"),
    "retry_delay": (float, "seconds"),
    "socket_timeout": (float, "seconds"),
    "stack_timeout": (float, "seconds"),
    "tcp_options": (_table, "a JSON object"),
}
"""`client.NAME`: pika's ConnectionParameters arguments that the URL does not say otherwise."""


def parameters(url: Url, settings: RabbitSettings) -> list[pika.ConnectionParameters]:
    """pika's parameters for each node. Raises ConfigurationError."""
    import pika

    secure = url.scheme == "amqps" or settings.tls
    context = _tls_context(settings) if secure else None
    credentials: Any = pika.credentials.ExternalCredentials()
    if settings.sasl == "plain":
        credentials = pika.PlainCredentials(url.username or "guest", url.password or "guest")
    options: dict[str, Any] = {
        "heartbeat": DEFAULT_HEARTBEAT,
        "client_properties": {"connection_name": "brokerkit"},
        **_client_options(settings),
    }
    return [
        pika.ConnectionParameters(
            host=host,
            port=port or (5671 if secure else 5672),
            virtual_host=url.path[1:] or "/",
            credentials=credentials,
            ssl_options=None if context is None else pika.SSLOptions(context, host),
            **options,
        )
        for host, port in url.hosts or [("localhost", None)]
    ]


def _client_options(settings: RabbitSettings) -> dict[str, Any]:
    """`client.NAME` values, typed."""
    import pika

    options: dict[str, Any] = {}
    for name, text in settings.client.items():
        if name not in CLIENT:
            raise ConfigurationError(
                f"unknown option client.{name}: pika's are {', '.join(f'client.{known}' for known in sorted(CLIENT))}"
            )
        convert, kind = CLIENT[name]
        try:
            options[name] = convert(text)
            pika.ConnectionParameters(**{name: options[name]})
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"option client.{name} must be {kind}: {error}") from None
    return options


def _tls_context(settings: RabbitSettings) -> ssl.SSLContext:
    """Raises ConfigurationError for files that cannot be read."""
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
        if settings.tls_cert is not None:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"tls_ca, tls_cert or tls_key cannot be used: {error}") from None
    if not settings.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
