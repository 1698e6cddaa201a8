"""What librdkafka's errors mean in brokerkit's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException

from brokerkit.driver import Cause
from brokerkit.errors import (
    AccessRefused,
    BrokerkitError,
    ConfigurationError,
    ConnectionLost,
    NotFound,
    NotSupported,
    PositionLost,
)

Client = TypeVar("Client")

MISSING = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
ACCESS = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
_WRONG = {
    KafkaError._INVALID_ARG,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.INVALID_CONFIG,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.INVALID_GROUP_ID,
    KafkaError.POLICY_VIOLATION,
    KafkaError.INVALID_TRANSACTION_TIMEOUT,
}

NOT_STORED: dict[int, Cause] = {
    **dict.fromkeys(MISSING, Cause.TOPIC_MISSING),
    KafkaError.TOPIC_EXCEPTION: Cause.TOPIC_MISSING,
    KafkaError.MSG_SIZE_TOO_LARGE: Cause.TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE: Cause.TOO_LARGE,
    KafkaError.TOPIC_AUTHORIZATION_FAILED: Cause.ACCESS,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: Cause.ACCESS,
    KafkaError.INVALID_RECORD: Cause.INVALID,
    KafkaError.INVALID_TIMESTAMP: Cause.INVALID,
    KafkaError._INVALID_ARG: Cause.INVALID,
}
"""Errors of a send that exclude storage. Every other one leaves it unknown: the Python client does not show
whether a message that timed out had left the queue."""


class Exists(ConfigurationError):
    """There is a topic of this name already."""


_MEANING: dict[int, tuple[type[BrokerkitError], str]] = {
    **dict.fromkeys({*MISSING, KafkaError.GROUP_ID_NOT_FOUND}, (NotFound, "declare it first")),
    **dict.fromkeys(ACCESS, (AccessRefused, "see user, password, sasl_mechanism and the broker's ACLs")),
    **dict.fromkeys(_WRONG, (ConfigurationError, "")),
    KafkaError.TOPIC_ALREADY_EXISTS: (Exists, ""),
    KafkaError.NON_EMPTY_GROUP: (NotSupported, "close its consumers first"),
}


def made(kind: Callable[[dict[str, Any]], Client], config: dict[str, Any]) -> Client:
    """A client of librdkafka. Raises ConfigurationError for options that it does not take."""
    try:
        return kind(config)
    except KafkaException as error:
        raise ConfigurationError(f"client options: {error.args[0].str()}") from None


def translated(error: KafkaError, doing: str) -> BrokerkitError:
    """The exception for `error`, and the cure; `doing` says what was tried, and on what."""
    kind, cure = _MEANING.get(error.code(), (ConnectionLost, ""))
    return kind(f"{doing}: {error.str()}" + (f"; {cure}" if cure else ""))


def fetching(where: str, error: KafkaError) -> BrokerkitError | None:
    """What an error in a message's place means for its partition, `where`; None for what passes by itself."""
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        return PositionLost(
            f"the committed offset of {where} is no longer in the log ({error.str()}): messages were deleted by "
            "retention before they were received. Delete the subscription and declare it again with start="
        )
    told_elsewhere = error.code() in (KafkaError._MAX_POLL_EXCEEDED, KafkaError._PARTITION_EOF)
    if told_elsewhere or (error.retriable() and not error.fatal()):
        return None
    return translated(error, f"receiving from {where}")
