"""What gRPC's status codes mean in brokerkit's words."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode
from grpc_status import rpc_status

from brokerkit.driver import Cause
from brokerkit.errors import AccessRefused, BrokerkitError, ConfigurationError, ConnectionLost, NotFound

ACCESS = {StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED}
TRANSIENT = {
    StatusCode.UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.ABORTED,
    StatusCode.CANCELLED,
    StatusCode.INTERNAL,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.UNKNOWN,
}
"""Codes after which the same call may succeed, and that leave open whether this one did."""

NOT_STORED: dict[StatusCode, Cause] = {
    StatusCode.NOT_FOUND: Cause.TOPIC_MISSING,
    StatusCode.INVALID_ARGUMENT: Cause.INVALID,
    StatusCode.FAILED_PRECONDITION: Cause.INVALID,
    StatusCode.UNIMPLEMENTED: Cause.INVALID,
    StatusCode.OUT_OF_RANGE: Cause.INVALID,
    **dict.fromkeys(ACCESS, Cause.ACCESS),
}
"""Codes of a publish that exclude storage. Every other one leaves it unknown."""


def never_sent(error: grpc.RpcError) -> bool:
    """Whether the call certainly did not leave: there was no connection to send it on."""
    return error.code() is StatusCode.UNAVAILABLE and "failed to connect to all addresses" in str(error.details())


def translated(error: grpc.RpcError, doing: str) -> BrokerkitError:
    """The exception for `error`; `doing` says what was tried, and on what."""
    code = error.code()
    text = f"{doing}: {error.details() or code.name}"
    if code is StatusCode.NOT_FOUND:
        return NotFound(f"{text}; declare it first")
    if code in ACCESS:
        return AccessRefused(f"{text}; see the credentials and the roles that they have on this project")
    if code in (StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION, StatusCode.OUT_OF_RANGE):
        return ConfigurationError(text)
    return ConnectionLost(text)


def ack_failures(error: grpc.RpcError) -> Mapping[str, str]:
    """By ack id why it failed, where the answer says so: exactly-once delivery answers for each one."""
    status = rpc_status.from_call(error) if hasattr(error, "trailing_metadata") else None
    for detail in status.details if status is not None else ():
        info = ErrorInfo()
        if detail.Is(ErrorInfo.DESCRIPTOR) and detail.Unpack(info):
            return dict(info.metadata)
    return {}
