"""The inbox: which messages a consumer has seen, written in the transaction of their effects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from brokerkit.errors import ConfigurationError
from brokerkit.once.stores import store_of
from brokerkit.once.stores.contract import Store, stored_id


class Identified(Protocol):
    """What the inbox looks at: a Delivery or a Received."""

    @property
    def id(self) -> str: ...
    @property
    def id_source(self) -> Any: ...


_Seen = TypeVar("_Seen", bound=Identified)


class Inbox:
    """Recognises the messages that `consumer` has seen, in a transaction of the user's own. Thread-safe.

    `consumer` names whose effects these are: two that share a name share what they have seen. A message without an
    id that anybody could recognise (`id_source` is `none`) is always new.
    """

    def __init__(self, consumer: str) -> None:
        if not isinstance(consumer, str) or not 0 < len(consumer) <= 200 or "\0" in consumer:
            raise ConfigurationError("an inbox has the name of its consumer, of 1 to 200 characters")
        self.consumer = consumer

    def fresh(self, connection: Any, deliveries: Sequence[_Seen]) -> list[_Seen]:
        """Those that are not seen yet, in order, each id once; from now on they are, if the transaction commits.

        `connection` has the transaction: psycopg's or sqlite3's Connection, SQLAlchemy's Session or Connection, or
        Django's `connection` inside `atomic`. One statement. Waits for another transaction that is about to see the
        same, and returns what that one rolls back. Ack all of `deliveries` after the commit, not before. Raises
        ConfigurationError when each statement on this connection commits by itself, and the database's own errors.
        """
        store, raw = store_of(connection)
        if not store.in_transaction(raw):
            raise ConfigurationError(
                "this connection commits each statement by itself, and the inbox belongs into the transaction of the "
                "effects: begin one first"
            )
        return unseen(store, raw, self.consumer, deliveries)


def unseen(
    store: Store, connection: Any, consumer: str, deliveries: Sequence[_Seen], *, begins: bool = False
) -> list[_Seen]:
    """As `Inbox.fresh`, on the client library's own connection; `begins`: its transaction begins with it."""
    first: dict[str, _Seen] = {}
    nameless = False
    for delivery in deliveries:
        if delivery.id_source == "none":
            nameless = True
        else:
            first.setdefault(stored_id(delivery.id), delivery)
    recorded = store.begin_fresh if begins else store.fresh
    new = recorded(connection, consumer, sorted(first)) if first or begins else set()
    if not nameless:
        return [delivery for id, delivery in first.items() if id in new]
    wanted = {id(delivery) for stored, delivery in first.items() if stored in new}
    return [delivery for delivery in deliveries if delivery.id_source == "none" or id(delivery) in wanted]
