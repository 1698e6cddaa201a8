"""One gRPC channel to Pub/Sub, by the client library's own transport and message types.

Its plain protobuf classes are used rather than the library's wrappers around them, which cost more than all the rest
of a send or a receive. One call is one attempt.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import google.auth
import google.auth.exceptions
import grpc
from google.protobuf import empty_pb2
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.types import pubsub as types

from brokerkit.errors import AccessRefused, ConfigurationError
from brokerkit_pubsub.settings import Config

Topic = types.Topic.pb()
Subscription = types.Subscription.pb()
PubsubMessage = types.PubsubMessage.pb()
PublishRequest = types.PublishRequest.pb()
PublishResponse = types.PublishResponse.pb()
PullRequest = types.PullRequest.pb()
PullResponse = types.PullResponse.pb()
AcknowledgeRequest = types.AcknowledgeRequest.pb()
ModifyAckDeadlineRequest = types.ModifyAckDeadlineRequest.pb()
SeekRequest = types.SeekRequest.pb()
ListTopicSubscriptionsRequest = types.ListTopicSubscriptionsRequest.pb()
ListTopicSubscriptionsResponse = types.ListTopicSubscriptionsResponse.pb()
GetTopicRequest = types.GetTopicRequest.pb()
DeleteTopicRequest = types.DeleteTopicRequest.pb()
GetSubscriptionRequest = types.GetSubscriptionRequest.pb()
DeleteSubscriptionRequest = types.DeleteSubscriptionRequest.pb()

_PUBLISHER, _SUBSCRIBER = "/google.pubsub.v1.Publisher/", "/google.pubsub.v1.Subscriber/"
_METHODS: dict[str, tuple[str, Any]] = {
    "CreateTopic": (_PUBLISHER, Topic),
    "GetTopic": (_PUBLISHER, Topic),
    "DeleteTopic": (_PUBLISHER, empty_pb2.Empty),
    "ListTopicSubscriptions": (_PUBLISHER, ListTopicSubscriptionsResponse),
    "Publish": (_PUBLISHER, PublishResponse),
    "CreateSubscription": (_SUBSCRIBER, Subscription),
    "GetSubscription": (_SUBSCRIBER, Subscription),
    "DeleteSubscription": (_SUBSCRIBER, empty_pb2.Empty),
    "Pull": (_SUBSCRIBER, PullResponse),
    "Acknowledge": (_SUBSCRIBER, empty_pb2.Empty),
    "ModifyAckDeadline": (_SUBSCRIBER, empty_pb2.Empty),
    "Seek": (_SUBSCRIBER, types.SeekResponse.pb()),
}


class NoMessage(grpc.RpcError):  # type: ignore[misc]
    """The call was said to be done, and its answer is missing: gRPC's Python client takes that for success."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.INTERNAL

    def details(self) -> str:
        return "the answer had no message"


def answer_of(future: Any) -> Any:
    """What a call that was begun came to. Raises grpc.RpcError, or grpc.FutureCancelledError."""
    answer = future.result()
    if answer is None:
        raise NoMessage
    return answer


class Link:
    """A channel of its own: when it is closed, every call on it ends. Safe from several threads."""

    def __init__(self, config: Config) -> None:
        self._channel = _channel(config)
        self._calls: dict[str, Any] = {}

    def call(self, method: str, request: Any, timeout: float) -> Any:
        """One attempt. Raises grpc.RpcError."""
        answer = self._stub(method)(request, timeout=timeout, metadata=_routing(method, request))
        if answer is None:
            raise NoMessage
        return answer

    def begin(self, method: str, request: Any, timeout: float, done: Callable[[Any], None] | None = None) -> Any:
        """The same without waiting: returns gRPC's future, and `done` gets it when it has ended."""
        future = self._stub(method).future(request, timeout=timeout, metadata=_routing(method, request))
        if done is not None:
            future.add_done_callback(done)
        return future

    def close(self) -> None:
        self._channel.close()

    def _stub(self, method: str) -> Any:
        stub = self._calls.get(method)
        if stub is None:
            service, answer = _METHODS[method]
            stub = self._calls[method] = self._channel.unary_unary(
                service + method, request_serializer=_serialized, response_deserializer=answer.FromString
            )
        return stub


def _serialized(request: Any) -> bytes:
    data: bytes = request.SerializeToString()
    return data


def _routing(method: str, request: Any) -> tuple[tuple[str, str]]:
    """The header by which the service finds the place of the topic or subscription."""
    if method.startswith("Create"):
        name, value = "name", request.name
    elif "Topic" in method or method == "Publish":
        name, value = "topic", request.topic
    else:
        name, value = "subscription", request.subscription
    return (("x-goog-request-params", f"{name}={quote(value, safe='')}"),)


def _channel(config: Config) -> grpc.Channel:
    options = config.channel_options()
    if config.emulator is not None:
        return grpc.insecure_channel(config.emulator, options)
    settings = config.settings
    try:
        return PublisherGrpcTransport.create_channel(
            settings.endpoint or PublisherGrpcTransport.DEFAULT_HOST,
            credentials=_credentials(settings.credentials_file) if settings.credentials_file else None,
            quota_project_id=settings.quota_project,
            options=options,
        )
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise AccessRefused(
            "no Google credentials were found: run `gcloud auth application-default login`, set "
            "GOOGLE_APPLICATION_CREDENTIALS or credentials_file, or name an emulator with emulator_host"
        ) from error


def _credentials(file: str) -> Any:
    """From a key or workload identity file; nothing of what is in it gets into an error."""
    try:
        with warnings.catch_warnings():
            # It warns of files from untrusted sources; this one the user has named.
            warnings.simplefilter("ignore", DeprecationWarning)
            load: Any = google.auth.load_credentials_from_file
            return load(file, scopes=PublisherGrpcTransport.AUTH_SCOPES)[0]
    except (google.auth.exceptions.GoogleAuthError, ValueError, OSError) as error:
        raise ConfigurationError(f"credentials_file {file!r} cannot be used: {type(error).__name__}") from None
