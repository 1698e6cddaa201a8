"""What librdkafka's errors mean in brokerkit's words."""

from __future__ import annotations

from confluent_kafka import KafkaError

from brokerkit.driver import Cause
from brokerkit.errors import AccessRefused, BrokerkitError, ConfigurationError, ConnectionLost, NotFound

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


def translated(error: KafkaError, doing: str) -> BrokerkitError:
    """The exception for `error`; `doing` says what was tried, and on what."""
    code = error.code()
    text = f"{doing}: {error.str()}"
    if code in MISSING:
        return NotFound(f"{text}; declare it first")
    if code in ACCESS:
        return AccessRefused(f"{text}; see user, password, sasl_mechanism and the broker's ACLs")
    if code in _WRONG:
        return ConfigurationError(text)
    return ConnectionLost(text)
