"""What a sqlite:// URL may say, and which file it names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from brokerkit.errors import ConfigurationError
from brokerkit.plugins import Settings, Url

PRAGMAS = (
    *("cache_size", "cell_size_check", "checkpoint_fullfsync", "fullfsync", "journal_size_limit", "mmap_size"),
    *("page_size", "secure_delete", "temp_store", "wal_autocheckpoint"),
)
"""SQLite's own settings that may be given as `client.NAME=value`; the others would break a promise."""


class SqliteSettings(Settings):
    synchronous: Literal["FULL", "NORMAL"] = "FULL"
    """NORMAL: a commit survives the death of every process, but not that of the machine."""
    busy_timeout: float = Field(10.0, gt=0, le=3600)
    """Seconds to wait for other processes' transactions."""
    lease_seconds: float = Field(30.0, ge=0.1, le=86_400)
    retention_seconds: float = Field(0.0, ge=0, le=10 * 365 * 86_400)
    """How long a new topic keeps what every subscription has settled, for subscriptions that start `earliest`."""
    dedup_window_seconds: float = Field(86_400.0, gt=0, le=10 * 365 * 86_400)
    """How long the ids of exactly-once sends are remembered."""
    max_body_bytes: int = Field(16 * 1024 * 1024, gt=0, le=512 * 1024 * 1024)

    @field_validator("synchronous", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("client")
    @classmethod
    def _pragmas(cls, client: Mapping[str, str]) -> Mapping[str, str]:
        for name, value in client.items():
            if name not in PRAGMAS:
                raise ValueError(
                    f"client.{name} is none of SQLite's pragmas that may be set: {', '.join(sorted(PRAGMAS))}"
                )
            if not re.fullmatch(r"-?\w+", value):
                raise ValueError(f"client.{name} must be a number or a word")
        return client

    @property
    def pragmas(self) -> Mapping[str, str]:
        """What every connection is set to."""
        return {"cache_size": "-16384", **self.client, "synchronous": self.synchronous}


def path_of(url: Url) -> Path:
    """`sqlite:///queue.db` is relative to the working directory, `sqlite:////var/queue.db` is absolute."""
    if url.netloc or url.username:
        raise ConfigurationError(
            "a sqlite URL has no host: write sqlite:///queue.db (relative) or sqlite:////var/queue.db (absolute)"
        )
    name = url.path[1:]
    if not name or name.endswith("/") or "\0" in name:
        raise ConfigurationError("a sqlite URL names a file: sqlite:///queue.db, or sqlite:////var/queue.db")
    if name == ":memory:":
        raise ConfigurationError("an in-memory database cannot be shared: use memory:// or name a file")
    return Path(name).absolute()
