"""Where idempotency keys are kept: one row a key, changed by single statements that compare the owner's token."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from brokerkit.errors import BrokerkitError, ConfigurationError, ConnectionLost
from brokerkit.events import backoffs
from brokerkit.once.stores import VALKEY, store_for, store_of
from brokerkit.once.stores.contract import Durability, Store, one_line, shown

State = Literal["in_progress", "done", "failed"]
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Row:
    """A key as it is kept. Times are by the store's clock, in seconds from now."""

    fingerprint: bytes
    state: State
    owner: str
    lease_left: float
    age: float
    """Since it was held first."""
    attempts: int
    request: bytes | None
    result: bytes | None


class KeyStore(ABC):
    """Thread-safe. A call that loses its connection, or a conflict with another transaction, is made again until
    `timeout` seconds are over: each may be made twice, for the owner's token tells that it was made before. After that
    it raises ConnectionLost."""

    def __init__(self, url: str, timeout: float) -> None:
        self.url = url
        self._timeout = timeout

    @abstractmethod
    def durability(self) -> Durability:
        """What the store remembers, as its settings say. Raises as `Store.connect` and `Store.check`, and
        ConfigurationError when it forgets keys while nothing fails."""

    @abstractmethod
    def claim(self, name: str, key: str, fingerprint: bytes, owner: str, lease: float, keep: float) -> Row:
        """Makes the key the owner's, in progress, if it is new, or its time is over, or, with the same fingerprint, it
        failed or its holder's lease is over. Returns the row as it is then, whoever's it is."""

    @abstractmethod
    def renew(self, name: str, key: str, owner: str, lease: float, keep: float) -> bool:
        """Whether the key is still in progress and the owner's; it is for another `lease` seconds."""

    @abstractmethod
    def remember(self, name: str, key: str, owner: str, request: bytes) -> bool:
        """Puts down what is about to be sent. Whether the key is still the owner's."""

    @abstractmethod
    def settle(
        self, name: str, key: str, owner: str, state: State, result: bytes, keep: float, connection: Any = None
    ) -> bool:
        """Ends what is in progress. Whether it was still the owner's. With the user's `connection`, in its
        transaction, and once."""

    @abstractmethod
    def read(self, name: str, key: str) -> Row | None: ...

    @abstractmethod
    def prune(self, most: int) -> int:
        """Removes up to that many keys whose time is over; how many."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _passing(self, error: Exception) -> bool:
        """Whether the same call may succeed a little later."""

    def _patiently(self, call: Callable[[], _Answer]) -> _Answer:
        deadline = time.monotonic() + self._timeout
        for wait in backoffs():
            try:
                return call()
            except Exception as error:
                if not self._passing(error):
                    raise
                if time.monotonic() + wait > deadline:
                    raise self._gave_up(error) from error
            time.sleep(wait)
        raise AssertionError

    def _gave_up(self, error: Exception) -> BrokerkitError:
        if isinstance(error, BrokerkitError):
            return error
        said = one_line(error)
        return ConnectionLost(f"the store {shown(self.url)} gave no answer for {self._timeout:g} s: {said}")


_CLAIM = """\
insert into brokerkit_keys as k (name, key, fingerprint, state, owner, attempts, lease_until, keep_until, first_at)
values (:name, :key, :fingerprint, 'in_progress', :owner, 1, {now} + :lease, {now} + :keep, {now})
on conflict (name, key) do update set
    fingerprint = excluded.fingerprint,
    state = 'in_progress',
    owner = excluded.owner,
    attempts = case when k.keep_until <= {now} then 1 when k.owner = excluded.owner then k.attempts
        else k.attempts + 1 end,
    first_at = case when k.keep_until <= {now} then {now} else k.first_at end,
    request = case when k.keep_until <= {now} then null else k.request end,
    result = null,
    lease_until = {now} + :lease,
    keep_until = {now} + :keep
where (k.state = 'in_progress' and k.owner = excluded.owner)
    or ((k.state <> 'in_progress' or k.lease_until <= {now})
        and (k.keep_until <= {now} or (k.state <> 'done' and k.fingerprint = excluded.fingerprint)))
returning fingerprint, state, owner, lease_until - {now}, {now} - first_at, attempts, request, result"""
_READ = """\
select fingerprint, state, owner, lease_until - {now}, {now} - first_at, attempts, request, result
from brokerkit_keys where name = :name and key = :key"""
_RENEW = """\
update brokerkit_keys set lease_until = {now} + :lease
where name = :name and key = :key and owner = :owner and state = 'in_progress'"""
_REMEMBER = """\
update brokerkit_keys set request = :request
where name = :name and key = :key and owner = :owner and state = 'in_progress'"""
_SETTLE = """\
update brokerkit_keys set state = :state, result = :result, keep_until = {now} + :keep
where name = :name and key = :key and owner = :owner and state in ('in_progress', :state)"""
_PRUNE = """\
delete from brokerkit_keys where (name, key) in (
    select name, key from brokerkit_keys where keep_until <= {now} and (state <> 'in_progress' or lease_until <= {now})
    order by keep_until limit :most
)"""


class SqlKeys(KeyStore):
    """Keys in a SQL store: statements that commit by themselves, on a few connections of its own."""

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__(url, timeout)
        self._store: Store = store_for(url)
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._closed = False

    def durability(self) -> Durability:
        def look(connection: Any) -> Durability:
            self._store.check(connection, self.url)
            return self._store.durability(connection)

        return self._with_connection(look)

    def claim(self, name: str, key: str, fingerprint: bytes, owner: str, lease: float, keep: float) -> Row:
        names = {"name": name, "key": key}
        values = {**names, "fingerprint": fingerprint, "owner": owner, "lease": _ms(lease), "keep": _ms(keep)}

        def look(connection: Any) -> Row | None:
            row = self._store.run(connection, _CLAIM, values).fetchone()
            return _row(row or self._store.run(connection, _READ, names).fetchone())

        while True:
            row = self._patiently(lambda: self._with_connection(look))
            if row is not None:  # None: pruned between the two statements
                return row

    def renew(self, name: str, key: str, owner: str, lease: float, keep: float) -> bool:
        return self._changed(_RENEW, {"name": name, "key": key, "owner": owner, "lease": _ms(lease)})

    def remember(self, name: str, key: str, owner: str, request: bytes) -> bool:
        return self._changed(_REMEMBER, {"name": name, "key": key, "owner": owner, "request": request})

    def settle(
        self, name: str, key: str, owner: str, state: State, result: bytes, keep: float, connection: Any = None
    ) -> bool:
        values = {"name": name, "key": key, "owner": owner, "state": state, "result": result, "keep": _ms(keep)}
        if connection is None:
            return self._changed(_SETTLE, values)
        store, raw = store_of(connection)
        if store is not self._store:
            raise ConfigurationError(
                f"the keys are in {self._store.product}, and this connection leads to {store.product}: finish in a "
                "transaction of the database that has both"
            )
        if not store.in_transaction(raw):
            raise ConfigurationError(
                "this connection commits each statement by itself, and a key is finished in the transaction of the "
                "effects: begin one first"
            )
        return bool(store.run(raw, _SETTLE, values).rowcount)

    def read(self, name: str, key: str) -> Row | None:
        values = {"name": name, "key": key}
        return self._patiently(
            lambda: self._with_connection(
                lambda connection: _row(self._store.run(connection, _READ, values).fetchone())
            )
        )

    def prune(self, most: int) -> int:
        return self._patiently(lambda: self._with_connection(lambda connection: prune(self._store, connection, most)))

    def close(self) -> None:
        self._closed = True
        self._drop_idle()

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            self._store.close(connection)

    def _changed(self, sql: str, values: Mapping[str, Any]) -> bool:
        def change(connection: Any) -> bool:
            return bool(self._store.run(connection, sql, values).rowcount)

        return self._patiently(lambda: self._with_connection(change))

    def _with_connection(self, work: Callable[[Any], _Answer]) -> _Answer:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._store.connect(self.url)
            self._store.bound(connection, self._timeout / 2)
        try:
            answer = work(connection)
        except BaseException as error:
            lost = self._store.lost(connection)
            self._store.close(connection)
            if self._store.missing_table(error):
                raise self._store.no_tables(self.url) from None
            if lost:
                self._drop_idle()  # a server that was restarted has ended these too
                said = one_line(error)
                raise ConnectionLost(f"the connection to the store {shown(self.url)} was lost: {said}") from error
            raise
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return answer
        self._store.close(connection)
        return answer

    def _passing(self, error: Exception) -> bool:
        return isinstance(error, ConnectionLost) or self._store.conflict(error)


def prune(store: Store, connection: Any, most: int) -> int:
    """Removes up to that many keys whose time is over, in the transaction that there is; how many."""
    return int(store.run(connection, _PRUNE, {"most": most}).rowcount)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _row(row: Any) -> Row | None:
    if row is None:
        return None
    fingerprint, state, owner, lease, age, attempts, request, result = row
    return Row(fingerprint, state, owner, lease / 1000, age / 1000, attempts, request, result)


def key_store_for(url: str, timeout: float) -> KeyStore:
    """The store of a URL. Raises ConfigurationError, also when its client library is not installed."""
    scheme = url.partition("://")[0].lower() if isinstance(url, str) else ""
    if scheme in VALKEY:
        from brokerkit.once.stores.valkey import ValkeyKeys

        return ValkeyKeys(url, timeout)
    return SqlKeys(url, timeout)
