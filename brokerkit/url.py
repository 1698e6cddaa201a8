"""Broker URLs: parsed, typed and checked. No error and no repr shows a password."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from brokerkit.errors import ConfigurationError
from brokerkit.plugins import Plugin, Settings, Url, checked, plugin_for

_AUTHORITY_END = re.compile("[/?#]")


def parse(url: str, keywords: Mapping[str, Any]) -> tuple[Plugin, Url, Settings]:
    """The plugin that serves `url`, its parts, and its settings: query parameters, overridden by `keywords`.

    Raises ConfigurationError for an unknown scheme, a malformed part, an unknown option or a wrong value.
    """
    if not isinstance(url, str) or "://" not in url:
        raise ConfigurationError("a broker URL looks like kafka://localhost:9092 or sqlite:///queue.db")
    scheme, _, rest = url.partition("://")
    rest, fragment, _ = rest.partition("#")
    if fragment:
        raise ConfigurationError("a broker URL has no fragment; write # inside a password as %23")
    rest, _, query = rest.partition("?")
    netloc, slash, path = rest.partition("/")
    plugin = plugin_for(scheme.lower())
    userinfo, _, hosts = netloc.rpartition("@")
    user, colon, password = userinfo.partition(":")
    parsed = Url(
        scheme=scheme.lower(),
        netloc=hosts,
        path=unquote(slash + path),
        username=unquote(user) if userinfo else None,
        password=unquote(password) if colon else None,
        hosts=tuple(_host(host) for host in hosts.split(",") if host),
    )
    return plugin, parsed, _settings(plugin, _query(query), keywords)


def authority(url: str) -> tuple[str, str]:
    """What a URL has for user and password, and for hosts, as written; nothing is checked."""
    user, _, hosts = _AUTHORITY_END.split(url.partition("://")[2], maxsplit=1)[0].rpartition("@")
    return user, hosts


def with_hosts(url: str, hosts: str) -> str:
    """The same URL with other hosts, all else as written."""
    scheme, _, rest = url.partition("://")
    user, own = authority(url)
    before = f"{user}@" if user else ""
    return f"{scheme}://{before}{hosts}{rest[rest.index(own, len(before)) + len(own) :]}"


def _host(text: str) -> tuple[str, int | None]:
    host, port = text, ""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed:
            raise ConfigurationError("malformed broker URL: an IPv6 address stands in brackets, [::1]")
        port = rest.removeprefix(":")
    elif ":" in text:
        host, _, port = text.rpartition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigurationError(f"port {port!r} of host {host!r} is not a number from 1 to 65535")
    return host, int(port) if port else None


def _query(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in found:
            raise ConfigurationError(f"option {name!r} is given twice in the URL")
        found[name] = value
    return found


def _settings(plugin: Plugin, query: Mapping[str, str], keywords: Mapping[str, Any]) -> Settings:
    client = {name.removeprefix("client."): value for name, value in query.items() if name.startswith("client.")}
    values: dict[str, Any] = {name: value for name, value in query.items() if not name.startswith("client.")}
    for name, value in keywords.items():
        if name == "client":
            client |= {option: _text(setting) for option, setting in value.items()}
        else:
            values[name] = value
    own = ", and client.NAME for the client library's own"
    return checked(plugin.settings, {"client": client, **values}, plugin.name, own)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
