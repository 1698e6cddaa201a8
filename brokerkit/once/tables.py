"""The tables of a store: made, looked at, pruned."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from brokerkit.errors import ConfigurationError, ConnectionLost
from brokerkit.guarantees import Properties
from brokerkit.once.stores import keys, store_for
from brokerkit.once.stores.contract import VERSION, Durability, Store, one_line, shown

LEAST_WINDOW = timedelta(hours=1)
_CLOCKS_APART = timedelta(minutes=5)
"""More than well-kept clocks differ: one of the two was set wrong, or has jumped."""


def init(url: str) -> int:
    """Brings the tables in the store to the version that is wanted; returns the version they had. Idempotent.

    Raises ConnectionLost, AccessRefused, ConfigurationError."""
    store = store_for(url)
    connection = store.connect(url, create=True)
    try:
        before = store.version(connection)
        if before < VERSION:
            store.begin(connection)
            store.execute(connection, store.script(before))
            store.commit(connection)
        store.check(connection, url)
        return before
    finally:
        store.close(connection)


def script(url: str) -> str:
    """The SQL that makes the tables, for migrations of the user's own; connects to nothing."""
    return store_for(url).script()


def durability(url: str) -> Durability:
    """What a commit in this store survives. Raises as `init`, and NotFound where there are no tables."""
    store = store_for(url)
    connection = store.connect(url)
    try:
        store.check(connection, url)
        return store.durability(connection)
    finally:
        store.close(connection)


def horizon(properties: Properties) -> timedelta:
    """How long after it was handled a message may still be handed out again by a broker with these properties: what was
    never acked stays for `retention_seconds`, and comes `redelivery_seconds` later. At least an hour.

    A broker that keeps messages until they are settled (`retention_seconds` is None) sets no end: there it is as long
    as a subscription may be without a consumer, which nobody here knows. `broker.claims().properties` has them."""
    return max(LEAST_WINDOW, timedelta(seconds=(properties.retention_seconds or 0.0) + properties.redelivery_seconds))


def prune(
    url: str,
    window: timedelta,
    *,
    least: timedelta = LEAST_WINDOW,
    anyway: bool = False,
    batch: int = 1000,
    pause: float = 0.01,
) -> int:
    """Forgets the messages that were seen longer ago than `window`, and the idempotency keys whose time is over;
    returns how many.

    In batches of that size, each a transaction of its own, with a pause of so many seconds after each, so that
    consumers go on. A message that comes again later than `window` doubles its effect: a window shorter than `least`,
    the `horizon` of the broker whose messages these are, is refused unless `anyway`. So is a store whose clock is five
    minutes from this machine's, for by a clock that jumped forward everything is old. Raises as `durability`."""
    if not isinstance(window, timedelta):
        raise ConfigurationError(f"window is a datetime.timedelta, not {type(window).__name__}")
    if window < least and not anyway:
        raise ConfigurationError(
            f"a window of {window} forgets messages that brokers still hand out again: give at least {least}, better "
            "the longest time a message may be kept by the broker, in its dead letters, and by whoever sends it again"
        )
    store = store_for(url)
    connection = store.connect(url)
    try:
        store.check(connection, url)
        if not anyway:
            _check_clock(store, connection)
        seconds = window.total_seconds()
        seen = _prune(store, connection, lambda: store.prune(connection, seconds, batch), batch, pause)
        return seen + _prune(store, connection, lambda: keys.prune(store, connection, batch), batch, pause)
    except Exception as error:
        if store.lost(connection) or store.conflict(error):
            said = one_line(error)
            raise ConnectionLost(f"pruning {shown(url)} was broken off, run it again: {said}") from error
        raise
    finally:
        store.close(connection)


def _check_clock(store: Store, connection: Any) -> None:
    [stated] = store.run(connection, "select {now}", {}).fetchone()
    apart = timedelta(seconds=int(stated) / 1000 - time.time())
    if abs(apart) > _CLOCKS_APART:
        raise ConfigurationError(
            f"the store's clock is {abs(apart)} {'ahead of' if apart > timedelta(0) else 'behind'} this machine's: "
            "nothing was forgotten, for it is not certain what is old; set the wrong one of the two right"
        )


def _prune(store: Store, connection: Any, some_more: Callable[[], int], batch: int, pause: float) -> int:
    removed = 0
    while True:
        store.begin(connection)
        some = some_more()
        store.commit(connection)
        removed += some
        if some < batch:
            return removed
        time.sleep(pause)
