"""What an `sqs://` URL may say, and where it leads.

sqs://eu-west-1                                   Amazon's own endpoint, credentials from AWS's chain
sqs://eu-west-1?endpoint_url=http://host:9324     another endpoint
sqs://key:secret@host:9324/eu-west-1              the same, shorter
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from brokerkit.errors import ConfigurationError
from brokerkit.plugins import Url
from brokerkit.tls import TlsSettings

LEASE_CAP = 43_200
"""Seconds from its receipt after which a message can be held no longer, however often its lease is renewed."""

_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-\d+")
_OURS = {
    "retries": "a send that botocore repeats by itself is stored twice without anybody knowing: brokerkit repeats "
    "it, with the same id",
    "client_cert": "use the options tls_cert and tls_key",
    "region_name": "the URL names the region",
    "read_timeout": "use the option request_timeout",
    "connect_timeout": "use the option request_timeout",
    "max_pool_connections": "use the option parallel",
    "parameter_validation": "what brokerkit sends is checked before",
}
_CLIENT: dict[str, type] = {
    "endpoint_discovery_enabled": bool,
    "ignore_configured_endpoint_urls": bool,
    "proxies": dict,
    "signature_version": str,
    "tcp_keepalive": bool,
    "use_dualstack_endpoint": bool,
    "use_fips_endpoint": bool,
    "user_agent": str,
    "user_agent_appid": str,
    "user_agent_extra": str,
}
"""botocore's own options that may be given as `client.NAME=value`, and what they are."""


class SqsSettings(TlsSettings):
    """- `endpoint_url`, `sns_endpoint_url`: instead of Amazon's; the second is the first unless it is given.
    - `profile`: of AWS's configuration files.
    - `lease_seconds`: the visibility timeout that each receive asks for, and that brokerkit renews.
    - `wait_seconds`: of a long poll. A close waits for the polls under way, for what they bring is in flight.
    - `parallel`: how many calls are made at once, each way; an idle consumer polls once at a time.
    - `linger`: seconds that a batch waits for its tenth message.
    - `request_timeout`: seconds without an answer after which a call's end is unknown.
    - `fan_out`: `auto`: a topic declared with several subscriptions goes through SNS, one with a single one straight
      to its queue. `sns`: every topic goes through SNS, so that subscriptions can be added later.
    - `tls`: for `sqs://host:port/…`; `tls_ca` also checks Amazon's endpoint against that file.
    - `emulator`: says that the endpoint is none of Amazon's, so that the claims name what it gets wrong.
    """

    endpoint_url: str | None = None
    sns_endpoint_url: str | None = None
    profile: str | None = None
    lease_seconds: int = Field(30, ge=1, le=LEASE_CAP)
    wait_seconds: int = Field(5, ge=0, le=20)
    parallel: int = Field(8, ge=1, le=100)
    linger: float = Field(0.005, ge=0, le=10)
    request_timeout: float = Field(10.0, gt=0, le=600)
    fan_out: Literal["auto", "sns"] = "auto"
    emulator: Literal["elasticmq", "moto"] | None = None

    @field_validator("endpoint_url", "sns_endpoint_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
                raise ValueError("an endpoint looks like http://localhost:9324, without user or password")
        return value

    @field_validator("client")
    @classmethod
    def _known(cls, client: Mapping[str, str]) -> Mapping[str, str]:
        for name in client:
            if name in _OURS or name.partition(".")[0] in _OURS:
                raise ValueError(f"client.{name} cannot be set: {_OURS[name.partition('.')[0]]}")
            if name.partition(".")[0] not in _CLIENT:
                raise ValueError(f"client.{name} is none of botocore's options: {', '.join(sorted(_CLIENT))}")
        return client


class Made(BaseModel):
    """`native=` of `declare`: `attributes` of the queues that it creates, in SQS's own names."""

    model_config = ConfigDict(extra="forbid", strict=True)

    attributes: Mapping[str, Any] = {}


class Native(Made):
    """`native=` of a session: what exists already and is taken as it is."""

    queue_url: str | None = Field(None, min_length=1)
    queue: str | None = Field(None, min_length=1)
    topic_arn: str | None = Field(None, min_length=1)


@dataclass(frozen=True, slots=True)
class Place:
    """Where requests go, and as whom. The secret is in no repr."""

    region: str
    endpoint: str | None
    sns_endpoint: str | None
    key: str | None = None
    secret: str | None = field(default=None, repr=False)


def place_of(url: Url, settings: SqsSettings) -> Place:
    """Raises ConfigurationError for a URL that names no region, or two endpoints."""
    if (url.username is None) != (url.password is None):
        raise ConfigurationError(
            "credentials in an SQS URL are an access key id and its secret, sqs://key:secret@…; leave both out to use "
            "AWS's own chain (environment, files, roles)"
        )
    if len(url.hosts) != 1:
        raise ConfigurationError("an SQS URL names one region, sqs://eu-west-1, or one host, sqs://host:9324/eu-west-1")
    host, port = url.hosts[0]
    path = url.path.strip("/")
    if port is None and not path:
        region, endpoint = host, settings.endpoint_url
    else:
        if settings.endpoint_url is not None:
            raise ConfigurationError("the URL names a host and endpoint_url another one: give one of them")
        name = f"[{host}]" if ":" in host else host
        scheme, usual = ("https", 443) if settings.tls else ("http", 80)
        region, endpoint = path, f"{scheme}://{name}:{port or usual}"
    if not _REGION.fullmatch(region):
        raise ConfigurationError(
            f"{region!r} is not an AWS region: write sqs://eu-west-1, or sqs://host:9324/eu-west-1 for another endpoint"
        )
    return Place(region, endpoint, settings.sns_endpoint_url or endpoint, url.username, url.password)


def client_options(settings: SqsSettings) -> dict[str, Any]:
    """The `client.*` settings as botocore's Config takes them. Raises ConfigurationError."""
    options: dict[str, Any] = {}
    for name, text in settings.client.items():
        base, dot, rest = name.partition(".")
        kind = _CLIENT[base]
        if kind is dict:
            if not dot:
                raise ConfigurationError(f"client.{base} is one option for each scheme: client.{base}.https=…")
            options.setdefault(base, {})[rest] = text
        elif kind is bool:
            if text.lower() not in ("true", "false"):
                raise ConfigurationError(f"client.{name} is true or false, not {text!r}")
            options[name] = text.lower() == "true"
        else:
            options[name] = text
    return options
