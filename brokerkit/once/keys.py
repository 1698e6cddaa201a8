"""Idempotency keys: an effect in another service, or behind a request, made once and its result given again."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from brokerkit import _fork
from brokerkit.errors import BrokerkitError, Closed, ConfigurationError, KeyInUse, KeyLost, KeyReused
from brokerkit.events import backoffs
from brokerkit.guarantees import Claim, Likelihood
from brokerkit.once.stores.contract import LONGEST_ID, Durability
from brokerkit.once.stores.keys import Row, key_store_for

KEEP = timedelta(days=3)
"""As long as webhooks, the most patient of callers, are sent again."""

_NAMESPACE = uuid.UUID("7a4f9b0e-3d0c-5f0e-9a57-1f1ac6a2c0de")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def derived_key(consumer: str, message_id: str, step: str) -> str:
    """The key of one step in handling one message: the same whenever the message is handed over again.

    A UUID (version 5). Give it to the service that is called, or as the `id` of a message that the handler sends."""
    parts = (consumer, message_id, step)
    if not all(isinstance(part, str) and part for part in parts):
        raise ConfigurationError("a key derives from the consumer's name, the message's id and the step's name")
    return str(uuid.uuid5(_NAMESPACE, json.dumps(parts)))


def fingerprint(request: Any) -> bytes:
    """SHA-256 of a request: of bytes and text as they are, of anything else as JSON with its keys in order.

    Raises ConfigurationError for what is no JSON."""
    if isinstance(request, (bytes, bytearray, memoryview)):
        return hashlib.sha256(b"bytes:" + bytes(request)).digest()
    try:
        text = json.dumps(request, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"this request cannot be fingerprinted: {error}; give bytes, text, or what JSON can say, and nothing that "
            "differs from one attempt to the next"
        ) from None
    return hashlib.sha256(b"json:" + text.encode("utf-8", "surrogatepass")).digest()


class Keys:
    """The keys of one kind of effect, in a store that remembers them. Thread-safe; a context manager.

    `name` says whose keys these are: two that share a store and a name share their keys. A key is kept for `keep`,
    counted from its last attempt; after that it is a new one. A holder that dies is followed by another when its
    `lease` (seconds, by the store's clock) is over; while it lives, a thread renews the lease at a third of it.
    `timeout`: seconds to wait for the store, through a restart of it.

    Raises NotFound and ConfigurationError as `once.durability`, and ConfigurationError for a Valkey that evicts.
    """

    def __init__(
        self, store: str, name: str, *, keep: timedelta = KEEP, lease: float = 30.0, timeout: float = 10.0
    ) -> None:
        if not isinstance(name, str) or not 0 < len(name.encode("utf-8", "replace")) <= LONGEST_ID or "\0" in name:
            raise ConfigurationError("keys have a name, of 1 to 255 bytes, that says whose they are")
        if not isinstance(keep, timedelta):
            raise ConfigurationError(f"keep is a datetime.timedelta, not {type(keep).__name__}")
        if not 0.1 <= lease < keep.total_seconds():
            raise ConfigurationError(
                f"a lease lasts at least 0.1 s and less than the key is kept ({keep}), not {lease}"
            )
        self.name = name
        self.keep = keep
        self.lease = lease
        self._born = _fork.generation
        self._store = key_store_for(store, timeout)
        self._keeper: _Keeper | None = None
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._durability = self._store.durability()
        except BaseException:
            self._store.close()
            raise

    @property
    def durability(self) -> Durability:
        """What the store remembers, as its settings said when it was opened."""
        return self._durability

    @property
    def claim(self) -> Claim:
        """What may happen to an effect, whatever fails on the way."""
        forgets = [self._durability.why] if self._durability.why else []
        sure = self._durability.survives == "power_loss"
        again = (
            "an effect whose holder died before the result was stored runs again: it takes the key too, or its result "
            "is stored in its own transaction"
        )
        return Claim(
            loss=Likelihood.NEVER,
            duplicate=Likelihood.NEVER if sure else Likelihood.POSSIBLE,
            condition="; ".join([*forgets, f"the key is asked for again within {self.keep}", again]),
            source="settings read when the store was opened",
        )

    def hold(self, key: str, request: Any, *, wait: float = 0.0) -> Held:
        """Takes the key for this request, or finds its result; enter what it returns with `with`.

        `request` is what the effect depends on, as `fingerprint` takes it. While the key is in progress elsewhere,
        waits for up to `wait` seconds and then raises KeyInUse. Raises KeyReused when the key came with another
        request, ConnectionLost, and ConfigurationError for a key that is empty or longer than 255 bytes."""
        self._check()
        _check_key(key)
        print_ = fingerprint(request)
        owner = secrets.token_hex(16)
        deadline = time.monotonic() + wait
        for pause in backoffs():
            asked = time.monotonic()
            row = self._store.claim(self.name, key, print_, owner, self.lease, self.keep.total_seconds())
            if row.fingerprint != print_:
                raise KeyReused(f"key {key!r} came with another request before: another request needs another key")
            if row.owner == owner:
                return self._held(Held(self, key, owner, row, asked))
            if row.state == "done":
                return Held(self, key, owner, row, asked)
            left = max(0.0, row.lease_left)
            if time.monotonic() + pause > deadline:
                raise KeyInUse(
                    f"key {key!r} is in progress elsewhere: try again later, in {left:.1f} s at the latest", left
                )
            time.sleep(min(pause, left + 0.001))
        raise AssertionError

    def once(
        self, key: Callable[_P, str], *, request: Callable[_P, Any] | None = None, wait: float = 0.0
    ) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
        """A decorator: the function runs once for each key, and its result, as JSON, is given again after that.

        `key` and `request` (default: all arguments) are made from the arguments. Raises as `hold`, and
        ConfigurationError for a result that is no JSON, after which the key counts as failed."""

        def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
            if inspect.iscoroutinefunction(function):
                raise ConfigurationError(f"{function.__qualname__} is a coroutine function: use `hold` in a thread")
            signature = inspect.signature(function)

            @functools.wraps(function)
            def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
                if request is not None:
                    asked = request(*args, **kwargs)
                else:
                    bound = signature.bind(*args, **kwargs)
                    bound.apply_defaults()
                    asked = bound.arguments
                with self.hold(key(*args, **kwargs), asked, wait=wait) as held:
                    if held.fresh:
                        held.finish(_dumped(function(*args, **kwargs), function.__qualname__))
                    result: _R = json.loads(held.result)
                    return result

            return guarded

        return decorate

    def prune(self, *, batch: int = 1000) -> int:
        """Removes the keys whose time is over, under any name; returns how many. `brokerkit once prune` does too."""
        self._check()
        removed = 0
        while True:
            some = self._store.prune(batch)
            removed += some
            if some < batch:
                return removed

    def close(self) -> None:
        """Ends the renewing; what is held is left to its lease. Idempotent."""
        if self._born != _fork.generation:
            return  # the thread and the connections are the parent's
        with self._lock:
            self._closed = True
            keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.stop()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        _fork.check(self._born, "Keys object")
        if self._closed:
            raise Closed("these keys were closed")

    def _held(self, held: Held) -> Held:
        with self._lock:
            if self._keeper is None:
                self._keeper = _Keeper(self.lease)
            self._keeper.add(held)
        return held

    def _let_go(self, held: Held) -> None:
        with self._lock:
            if self._keeper is not None:
                self._keeper.remove(held)


class Held:
    """A key that this caller has, or whose result was found. Used by one thread at a time.

    As a context manager: leaving the block stores `result` and makes the key done, unless `finish` did it; an
    exception makes it failed, so that the same request may be tried again at once.
    """

    def __init__(self, keys: Keys, key: str, owner: str, row: Row, asked: float) -> None:
        self.key = key
        self.fresh = row.owner == owner
        """Whether the effect is this caller's to make; otherwise `result` is what was stored."""
        self.attempts = row.attempts
        """How often the effect was begun, this time included. After the first, it may have happened."""
        self.age = row.age
        """Seconds since it was begun first, by the store's clock."""
        self.request = row.request
        """What `remember` put down, at this attempt or an earlier one."""
        self.result: bytes = row.result or b""
        self._keys = keys
        self._owner = owner
        self._renewed = asked
        self._lost = False
        self._over = not self.fresh

    @property
    def over(self) -> bool:
        """Whether it was settled, or was found done: there is nothing to finish."""
        return self._over

    def remember(self, request: bytes) -> None:
        """Puts down what is about to be sent, so that a later attempt sends the same bytes. Raises KeyLost."""
        if not self._keys._store.remember(self._keys.name, self.key, self._owner, request):
            raise self._gone()
        self.request = request

    def check(self) -> None:
        """Raises KeyLost when the lease may be over. Call it right before an effect that cannot be repeated."""
        if self._lost or time.monotonic() - self._renewed > self._keys.lease:
            raise self._gone()

    def finish(self, result: bytes = b"", connection: Any = None) -> None:
        """Stores the result and makes the key done; KeyLost when another holder has the key, and nothing is stored.

        With `connection` (psycopg's, sqlite3's, SQLAlchemy's or Django's), in its transaction: the effects
        in that database and the result are there together or not at all. When it is rolled back, the key is left to its
        lease."""
        if self._over:
            raise ConfigurationError(f"key {self.key!r} was settled before")
        self._settle("done", result, connection)
        self.result = result

    def fail(self) -> None:
        """The same request may be tried again at once. Raises KeyLost when the key is not this caller's any more."""
        self._settle("failed", b"")

    def settled(self) -> bool:
        """Whether a result is stored, also by `finish` in a transaction that was committed meanwhile; reads it."""
        row = self._keys._store.read(self._keys.name, self.key)
        if row is None or row.state != "done" or row.owner != self._owner:
            return False
        self.result = row.result or b""
        return True

    def abandon(self) -> None:
        """Leaves the key to its lease, as a crash would."""
        self._over = True
        self._keys._let_go(self)

    def _settle(self, state: Any, result: bytes, connection: Any = None) -> None:
        keys = self._keys
        keep = keys.keep.total_seconds()
        if not keys._store.settle(keys.name, self.key, self._owner, state, result, keep, connection):
            raise self._gone()
        keys._let_go(self)
        self._over = True

    def _renew(self) -> None:
        asked, keys = time.monotonic(), self._keys
        kept = keys._store.renew(keys.name, self.key, self._owner, keys.lease, keys.keep.total_seconds())
        if kept:
            self._renewed = asked
        elif not self._over:
            self._lost = True
            keys._let_go(self)

    def _gone(self) -> KeyLost:
        return KeyLost(
            f"the lease of key {self.key!r} was over and it is, or may be, another holder's: this result was not stored"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            if not self._over:
                self.finish(self.result)
        elif not self._over:
            try:
                self.fail()
            except BrokerkitError:  # another's already, or left to the lease
                self.abandon()


class _Keeper:
    """One thread that renews what is held."""

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._held: set[Held] = set()
        self._some = threading.Condition()
        self._over = False
        self._thread: threading.Thread | None = None

    def add(self, held: Held) -> None:
        with self._some:
            self._held.add(held)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="brokerkit-keys", daemon=True)
                self._thread.start()

    def remove(self, held: Held) -> None:
        with self._some:
            self._held.discard(held)

    def stop(self) -> None:
        with self._some:
            self._over = True
            self._held.clear()
            self._some.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(30)

    def _run(self) -> None:
        while True:
            with self._some:
                if self._some.wait_for(lambda: self._over, self._lease / 6):
                    return
                if not self._held:
                    self._thread = None
                    return
                due = [held for held in self._held if time.monotonic() - held._renewed > self._lease / 4]
            for held in due:
                try:
                    held._renew()
                except Exception:  # the store is away: the next round asks again, finish tells
                    continue


def _check_key(key: str) -> None:
    if not isinstance(key, str) or not key or "\0" in key:
        raise ConfigurationError("a key is text, not empty, without NUL")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise ConfigurationError("a key is text that UTF-8 can say: it has half of a surrogate pair") from None
    if size > LONGEST_ID:
        raise ConfigurationError(f"this key has {size} bytes, and at most {LONGEST_ID} are kept: give a shorter one")


def _dumped(result: Any, what: str) -> bytes:
    try:
        return json.dumps(result, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"the result of {what} cannot be stored as JSON: {error}") from None
