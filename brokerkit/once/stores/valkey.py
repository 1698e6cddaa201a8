"""Idempotency keys in Valkey or Redis: a hash a key, changed by scripts that run as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brokerkit.errors import AccessRefused, ConfigurationError
from brokerkit.once.stores.contract import Durability, shown
from brokerkit.once.stores.keys import KeyStore, Row, State

try:
    import valkey
except ImportError:
    raise ConfigurationError(
        "Valkey as a store needs its client, which is not installed: pip install 'brokerkit-mq[valkey]'"
    ) from None

_NOW = "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"
_MINE = (
    _NOW
    + """\
local row = redis.call('HMGET', KEYS[1], 'owner', 'state')
if row[1] ~= ARGV[1] then return 0 end
"""
)
_FIELDS = """redis.call('HMGET', KEYS[1],
    'fingerprint', 'state', 'owner', 'lease_until', 'first_at', 'attempts', 'request', 'result')"""
_READ = f"{_NOW}return {{{_FIELDS}, string.format('%.0f', now)}}"
# A key whose time is over is gone by itself.
_CLAIM = f"""\
{_NOW}
local row = {_FIELDS}
local held = row[2] == 'in_progress' and tonumber(row[4]) > now
local again = row[2] == 'in_progress' and row[3] == ARGV[2]
if not row[1] or again or (row[1] == ARGV[1] and row[2] ~= 'done' and not held) then
    redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], 'state', 'in_progress', 'owner', ARGV[2],
        'lease_until', string.format('%.0f', now + ARGV[3]))
    redis.call('HSETNX', KEYS[1], 'first_at', string.format('%.0f', now))
    redis.call('HDEL', KEYS[1], 'result')
    if not again then redis.call('HINCRBY', KEYS[1], 'attempts', 1) end
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    row = {_FIELDS}
end
return {{row, string.format('%.0f', now)}}"""
_RENEW = f"""\
{_MINE}
if row[2] ~= 'in_progress' then return 0 end
redis.call('HSET', KEYS[1], 'lease_until', string.format('%.0f', now + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1"""
_REMEMBER = f"""\
{_MINE}
if row[2] ~= 'in_progress' then return 0 end
redis.call('HSET', KEYS[1], 'request', ARGV[2])
return 1"""
_SETTLE = f"""\
{_MINE}
if row[2] ~= 'in_progress' and row[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'result', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1"""

_LATER = (valkey.exceptions.ConnectionError, valkey.exceptions.TimeoutError, valkey.exceptions.ResponseError)
"""Refusals too: its memory or disk is full, or it became a replica a moment ago."""


class ValkeyKeys(KeyStore):
    """One server, by its scripts."""

    def __init__(self, url: str, timeout: float) -> None:
        super().__init__(url, timeout)
        scheme, separator, rest = url.partition("://")
        ours = f"{scheme.lower().replace('redis', 'valkey')}{separator}{rest}"
        try:
            self._client: Any = valkey.Valkey.from_url(
                ours, socket_timeout=5.0, socket_connect_timeout=5.0, health_check_interval=30
            )
            self._client.connection_pool.make_connection()
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"{shown(url)} is no URL that Valkey's client takes: {error}") from None
        self._scripts: Mapping[str, Any] = {
            script: self._client.register_script(script) for script in (_CLAIM, _READ, _RENEW, _REMEMBER, _SETTLE)
        }

    def durability(self) -> Durability:
        return self._patiently(self._durability)

    def _durability(self) -> Durability:
        try:
            info: Mapping[str, Any] = self._client.info("all")
        except valkey.exceptions.AuthenticationError as error:
            raise AccessRefused(f"{shown(self.url)} refuses the user: {error}") from None
        except valkey.exceptions.ResponseError as error:
            raise AccessRefused(f"{shown(self.url)} does not say how it keeps what it is given: {error}") from None
        if info.get("cluster_enabled"):
            raise ConfigurationError(f"{shown(self.url)} is part of a cluster; keys need one server")
        if info.get("role") != "master":
            raise ConfigurationError(f"{shown(self.url)} is a replica, which takes no keys: name its primary")
        policy = str(info.get("maxmemory_policy"))
        if int(info.get("maxmemory", 0)) and policy != "noeviction":
            raise ConfigurationError(
                f"{shown(self.url)} forgets keys when its memory is full (maxmemory-policy is {policy}), and a "
                "forgotten key doubles its effect: set maxmemory-policy to noeviction"
            )
        replicas = int(info.get("connected_slaves", 0))
        settings = {
            "appendonly": "yes" if info.get("aof_enabled") else "no",
            "appendfsync": self._appendfsync(),
            "maxmemory-policy": policy,
            "replicas": str(replicas),
        }
        if settings["appendonly"] == "no":
            return Durability("nothing", settings, "appendonly is no, so that a killed server forgets its last keys")
        if replicas:
            why = "there are replicas, and a failover to one forgets what it had not got"
            return Durability("nothing", settings, why)
        if settings["appendfsync"] != "always":
            why = f"appendfsync is {settings['appendfsync']}, so that a power cut takes the last keys along"
            return Durability("process_kill", settings, why)
        return Durability("power_loss", settings)

    def _appendfsync(self) -> str:
        try:
            return str(self._client.config_get("appendfsync").get("appendfsync", "unknown"))
        except valkey.exceptions.ResponseError:  # managed servers refuse CONFIG
            return "unknown"

    def claim(self, name: str, key: str, fingerprint: bytes, owner: str, lease: float, keep: float) -> Row:
        times = (int(lease * 1000), int(max(keep, lease) * 1000))
        row = _row(self._run(_CLAIM, name, key, fingerprint, owner, *times))
        assert row is not None
        return row

    def renew(self, name: str, key: str, owner: str, lease: float, keep: float) -> bool:
        return bool(self._run(_RENEW, name, key, owner, int(lease * 1000), int(max(keep, lease) * 1000)))

    def remember(self, name: str, key: str, owner: str, request: bytes) -> bool:
        return bool(self._run(_REMEMBER, name, key, owner, request))

    def settle(
        self, name: str, key: str, owner: str, state: State, result: bytes, keep: float, connection: Any = None
    ) -> bool:
        if connection is not None:
            raise ConfigurationError(
                "a key in Valkey cannot be finished in a database's transaction: keep the keys in that database"
            )
        return bool(self._run(_SETTLE, name, key, owner, state, result, int(keep * 1000)))

    def read(self, name: str, key: str) -> Row | None:
        return _row(self._run(_READ, name, key))

    def prune(self, most: int) -> int:
        """Nothing to do: each key has its time to live."""
        return 0

    def close(self) -> None:
        self._client.close()

    def _run(self, script: str, name: str, key: str, *values: bytes | str | int) -> Any:
        place = f"brokerkit:{name}:{key}"

        def run() -> Any:
            try:
                return self._scripts[script](keys=[place], args=values)
            except valkey.exceptions.NoPermissionError as error:
                raise AccessRefused(f"{shown(self.url)} does not allow the user to keep keys: {error}") from None

        return self._patiently(run)

    def _passing(self, error: Exception) -> bool:
        if isinstance(error, valkey.exceptions.AuthenticationError):
            return False
        return isinstance(error, _LATER)


def _row(answer: Any) -> Row | None:
    (fingerprint, state, owner, lease, first, attempts, request, result), now = answer
    if fingerprint is None:
        return None
    left, age = (int(lease) - int(now)) / 1000, (int(now) - int(first)) / 1000
    return Row(fingerprint, state.decode(), owner.decode(), left, age, int(attempts), request, result)
