"""The outbox: messages written in the transaction of the effects, for a relay to send after the commit."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from brokerkit.errors import ConfigurationError
from brokerkit.message import NO_HEADERS, Headers, Message
from brokerkit.once.stores import store_for, store_of
from brokerkit.once.stores.contract import SHARDS, Lag, Row

DEFAULT = "default"


class Outbox:
    """One outbox in the store at `store`, a URL. Thread-safe.

    A store may have several, each with relays of its own: one for each broker that is sent to.
    """

    def __init__(self, store: str, name: str = DEFAULT) -> None:
        """Connects to nothing. Raises ConfigurationError."""
        self.name = checked_name(name)
        self._url = store
        self._store = store_for(store)

    def send(
        self,
        connection: Any,
        topic: str,
        body: bytes,
        *,
        id: str | None = None,
        key: str | None = None,
        headers: Headers | None = None,
        content_type: str | None = None,
    ) -> Message:
        """Writes one message for `topic`; it leaves if the transaction commits. Returns it, for its id.

        `connection` has the transaction: psycopg's or sqlite3's Connection, SQLAlchemy's Session or Connection, or
        Django's `connection` inside `atomic`.
        Give an `id` that the same effect has each time (`once.derived_key`), so that the message is recognised when the
        effect is repeated. Raises ConfigurationError for a wrong argument and when each statement on this connection
        commits by itself, NotFound where there are no tables, and the database's own errors.
        """
        [message] = self.send_many(connection, topic, [Message(body, id, key, headers, content_type)])
        return message

    def send_many(self, connection: Any, topic: str, messages: Iterable[Message | bytes]) -> Sequence[Message]:
        """As `send`, by one statement; bare bytes get a fresh id."""
        made = [message if isinstance(message, Message) else Message(message) for message in messages]
        rows = [row(topic, message) for message in made]
        store, raw = store_of(connection)
        if store is not self._store:
            raise ConfigurationError(
                f"the outbox is in a {self._store.product} database, and this is a connection to {store.product}"
            )
        if not store.in_transaction(raw):
            raise ConfigurationError(
                "this connection commits each statement by itself, and a message belongs into the transaction of the "
                "effects: begin one first"
            )
        if rows:
            try:
                store.write(raw, self.name, rows)
            except Exception as error:
                if store.missing_table(error):
                    raise store.no_tables(self._url) from error
                raise
        return made

    def lag(self) -> Lag:
        """What still waits here. Connects, counts, ends. Raises as `once.durability`."""
        with self._connected() as connection:
            return self._store.lag(connection, self.name)

    def refused(self, most: int = 100) -> Sequence[tuple[str, str, str]]:
        """Topic, message id and reason of the first messages that the broker refused. They stay, and those of the
        same topic and key behind them, until `release`. Raises as `lag`."""
        with self._connected() as connection:
            found = self._store.refused(connection, self.name, most)
        return [(topic, message_id, reason) for _, topic, message_id, reason in found]

    def release(self, *, drop: bool = False) -> int:
        """The refused messages are sent again, in their old order, or dropped for good; returns how many. Raises as
        `lag`."""
        with self._connected() as connection:
            return self._store.release(connection, self.name, drop=drop)

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        connection = self._store.connect(self._url)
        try:
            self._store.check(connection, self._url)
            yield connection
        finally:
            self._store.close(connection)

    def __repr__(self) -> str:
        return f"Outbox({self._store.product}, {self.name!r})"


def checked_name(name: object) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= 200 or "\0" in name:
        raise ConfigurationError(f"an outbox has a name of 1 to 200 characters, not {name!r}")
    return name


def row(topic: object, message: Message) -> Row:
    """Raises ConfigurationError for what no broker, or no database's text, takes."""
    if not isinstance(topic, str) or not topic:
        raise ConfigurationError(f"topic is a name, not {topic!r}")
    body, id, key, headers, content_type, published_at, _ = message
    for name, value in (("topic", topic), ("id", id), ("key", key), ("content_type", content_type)):
        if value is not None and "\0" in value:
            raise ConfigurationError(f"{name} holds a NUL character, which no store keeps")
    shard = zlib.crc32(id.encode() if key is None else f"{topic}\0{key}".encode()) % SHARDS
    return Row(shard, topic, id, key, _packed(headers) if headers else None, content_type, published_at, body)


def _packed(headers: Headers) -> str:
    return json.dumps(
        {
            name: value if isinstance(value, str) else [base64.b64encode(value).decode()]
            for name, value in headers.items()
        }
    )


def unpacked(headers: str | None) -> Headers:
    if headers is None:
        return NO_HEADERS
    return {
        name: value if isinstance(value, str) else base64.b64decode(value[0])
        for name, value in json.loads(headers).items()
    }
