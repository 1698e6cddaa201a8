"""boto3's clients as this driver uses them: one for calls, one for long polls, one for SNS.

A client is safe to use from several threads, a session is not. botocore repeats nothing by itself here: one call is
one attempt, whose end is known or is told to be unknown.
"""

from __future__ import annotations

import threading
from typing import Any

import boto3
import botocore.exceptions
from botocore.config import Config

from brokerkit.errors import ConfigurationError
from brokerkit_sqs.errors import Failures
from brokerkit_sqs.quick import QuickClient
from brokerkit_sqs.settings import Place, SqsSettings, client_options


class Clients:
    """Made when first used; safe from several threads."""

    def __init__(self, place: Place, settings: SqsSettings) -> None:
        self.place = place
        self._settings = settings
        self._more = client_options(settings)
        self._lock = threading.Lock()
        self._made: dict[str, Any] = {}
        self.failures = Failures()

    @property
    def calls(self) -> Any:
        """SQS, for everything that is answered at once."""
        return self._client("calls", "sqs", self.place.endpoint, self._settings.request_timeout)

    @property
    def polls(self) -> Any:
        """SQS, for long polls."""
        patience = self._settings.wait_seconds + self._settings.request_timeout
        return self._client("polls", "sqs", self.place.endpoint, patience)

    @property
    def sns(self) -> Any:
        return self._client("sns", "sns", self.place.sns_endpoint, self._settings.request_timeout)

    def close(self) -> None:
        with self._lock:
            made, self._made = self._made, {}
        for client in made.values():
            client.close()

    def _client(self, name: str, service: str, endpoint: str | None, patience: float) -> Any:
        client = self._made.get(name)
        if client is None:
            with self._lock:
                client = self._made.get(name)
                if client is None:
                    client = self._made[name] = self._make(service, endpoint, patience)
        return client

    def _make(self, service: str, endpoint: str | None, patience: float) -> Any:
        options: dict[str, Any] = {"tcp_keepalive": True, **self._more}
        certificate, key = self._settings.tls_cert, self._settings.tls_key
        if certificate is not None:
            options["client_cert"] = certificate if key is None else (certificate, key)
        config = Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=min(5.0, self._settings.request_timeout),
            read_timeout=patience,
            max_pool_connections=2 * self._settings.parallel + 4,
            parameter_validation=False,
            **options,
        )
        try:
            session = boto3.Session(
                aws_access_key_id=self.place.key,
                aws_secret_access_key=self.place.secret,
                region_name=self.place.region,
                profile_name=self._settings.profile,
            )
            client = session.client(service, endpoint_url=endpoint, config=config, verify=self._settings.tls_ca)
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise ConfigurationError(f"no {service} client can be made of this URL: {error}") from None
        return QuickClient(client) if service == "sqs" else client
