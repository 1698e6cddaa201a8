"""Settings of `pubsub://` URLs: which project, where, and how subscriptions are declared."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, field_validator

from brokerkit.errors import ConfigurationError
from brokerkit.plugins import Settings, Url

_PROJECT = re.compile(r"[a-z][a-z0-9-]{1,62}|[0-9]{1,20}")
_OURS = {"grpc.enable_retries": "brokerkit tries again itself, so that it knows of every attempt"}


class PubsubSettings(Settings):
    """`ack_deadline`, `ordering`, `exactly_once` and the retentions are for what `declare` creates.

    - `emulator_host`: host:port of an emulator, reached without TLS and credentials; default: the environment's
      PUBSUB_EMULATOR_HOST.
    - `endpoint`: a regional one, `europe-west1-pubsub.googleapis.com`.
    - `credentials_file`: a key or workload identity file; default: Google's own chain of credentials.
    - `quota_project`: the project that is billed.
    - `ack_deadline`: seconds of a lease; renewed while a delivery is held.
    - `ordering`: keys become ordering keys; first deliveries of a key keep the send order.
    - `exactly_once`: exactly-once delivery: acks are answered truly, and at most once is offered.
    - `retention`: seconds that a subscription keeps what is not acked. `topic_retention`: seconds that a topic
      keeps everything, for subscriptions that start `earliest`.
    """

    emulator_host: str | None = None
    endpoint: str | None = None
    credentials_file: str | None = None
    quota_project: str | None = None
    ack_deadline: int = Field(30, ge=1, le=600)
    ordering: bool = False
    exactly_once: bool = False
    retention: int | None = Field(None, ge=600, le=2_678_400)
    topic_retention: int | None = Field(None, ge=600, le=2_678_400)

    @field_validator("emulator_host", "endpoint")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?", value):
            raise ValueError("must be host or host:port, without a scheme")
        return value

    @field_validator("client")
    @classmethod
    def _channel_options(cls, client: Mapping[str, str]) -> Mapping[str, str]:
        for name in client:
            if name in _OURS:
                raise ValueError(f"client.{name} cannot be set: {_OURS[name]}")
            if not name.startswith("grpc."):
                raise ValueError(f"client.{name} is no option of a gRPC channel: their names begin with grpc.")
        return client


class Native(BaseModel):
    """`native=`: as in PubsubSettings, and what has no setting, for what `declare` creates; `subscription` and `topic`
    are those that exist already and are taken as they are."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ack_deadline: int | None = None
    exactly_once: bool | None = None
    filter: str | None = None
    maximum_backoff: int | None = None
    minimum_backoff: int | None = None
    ordering: bool | None = None
    retention: int | None = None
    subscription: str | None = None
    topic: str | None = None
    topic_retention: int | None = None


class Config:
    """What one URL stands for. Raises ConfigurationError for contradictions."""

    def __init__(self, url: Url, settings: PubsubSettings) -> None:
        if url.username is not None or url.password is not None:
            raise ConfigurationError(
                "a Pub/Sub URL has no user and password: credentials come from Google's own chain, or credentials_file"
            )
        if url.path not in ("", "/"):
            raise ConfigurationError(f"a Pub/Sub URL has no path, got {url.path!r}: topics are named in the calls")
        self.settings = settings
        self.project = url.netloc or os.environ.get("GOOGLE_CLOUD_PROJECT", "")
        if not self.project:
            raise ConfigurationError("a Pub/Sub URL names the project: pubsub://my-project")
        if not _PROJECT.fullmatch(self.project):
            raise ConfigurationError(
                f"{self.project!r} is not a project id: small letters, digits and -, a letter first"
            )
        self.emulator = settings.emulator_host
        if self.emulator is None and settings.endpoint is None and settings.credentials_file is None:
            self.emulator = os.environ.get("PUBSUB_EMULATOR_HOST") or None
        if self.emulator is not None and (settings.endpoint or settings.credentials_file):
            raise ConfigurationError("emulator_host is an emulator's, endpoint and credentials_file the service's")

    def topic(self, name: str) -> str:
        """The whole name of a topic; one that is whole already is taken as it is."""
        return name if name.startswith("projects/") else f"projects/{self.project}/topics/{name}"

    def subscription(self, name: str) -> str:
        return name if name.startswith("projects/") else f"projects/{self.project}/subscriptions/{name}"

    def channel_options(self) -> list[tuple[str, str | int]]:
        """One RPC is one attempt, so nothing below brokerkit tries again."""
        options: dict[str, str | int] = {
            "grpc.enable_retries": 0,
            "grpc.use_local_subchannel_pool": 1,
            "grpc.max_receive_message_length": -1,
            "grpc.max_send_message_length": -1,
            "grpc.initial_reconnect_backoff_ms": 100,
            "grpc.max_reconnect_backoff_ms": 2000,
        }
        if self.emulator is None:  # notices a connection that is dead without a word; emulators forbid it
            options |= {"grpc.keepalive_time_ms": 30_000, "grpc.keepalive_timeout_ms": 10_000}
        else:
            options["grpc.enable_http_proxy"] = 0
        options |= {name: int(v) if re.fullmatch(r"-?\d+", v) else v for name, v in self.settings.client.items()}
        return list(options.items())
