"""What botocore's errors mean in brokerkit's words, and what they say about whether something was stored."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)

from brokerkit.driver import Cause
from brokerkit.errors import AccessRefused, BrokerkitError, ConfigurationError, ConnectionLost, NotFound

FAILURES = (BotoCoreError, ClientError)
"""Everything that a call of boto3 raises on purpose."""

MISSING = {"QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue", "NotFound", "NotFoundException"}
EXISTS = {"QueueNameExists", "QueueAlreadyExists"}
STALE = {"ReceiptHandleIsInvalid", "InvalidParameterValue", "MessageNotInflight", "InvalidAttributeValue"}
"""Answers for a receipt handle whose lease is over."""

_ACCESS = {
    *("AccessDenied", "AccessDeniedException", "AuthFailure", "AuthorizationError", "ExpiredToken"),
    *("ExpiredTokenException", "InvalidSignatureException"),
    *("IncompleteSignature", "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidSecurity", "KmsAccessDenied"),
    *("MissingAuthenticationToken", "OptInRequired", "SignatureDoesNotMatch", "UnrecognizedClientException"),
}
_THROTTLED = {
    *("KmsThrottled", "OverLimit", "RequestThrottled", "SlowDown", "Throttled", "Throttling", "ThrottledException"),
    *("ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded"),
}
_TOO_LARGE = {"BatchRequestTooLong", "AWS.SimpleQueueService.BatchRequestTooLong", "MessageTooLong"}
_AWAY = {Cause.UNREACHABLE, Cause.DISCONNECTED, Cause.TIMED_OUT}
_COMING_UP = 5.0
"""Seconds after it was out of reach in which an endpoint may not know its queues yet: ElasticMQ serves its port first,
and reads them from its file then (ElasticMQServer.start)."""
_NEVER_SENT = (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError, SSLError)


@dataclass(frozen=True, slots=True)
class Failure:
    """What an error says of the call it ended. `certain`: nothing was stored."""

    cause: Cause
    detail: str
    certain: bool
    retry: bool

    @property
    def outage(self) -> bool:
        """Whether the endpoint is out of reach, or asks to be left alone for a while."""
        return self.retry


class Failures:
    """Judges errors with an eye on when the endpoint was out of reach. Thread-safe."""

    def __init__(self) -> None:
        self._away_at = -math.inf

    def of(self, error: Exception) -> Failure:
        """As `failure`; but a queue that is missing right after an outage is asked for again."""
        found = failure(error)
        if found.cause in _AWAY:
            self._away_at = time.monotonic()
        elif found.cause is Cause.TOPIC_MISSING and time.monotonic() - self._away_at < _COMING_UP:
            return replace(found, retry=True)
        return found


def code_of(error: Exception) -> str:
    """The service's own code; empty when there was no answer."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return ""


def failure(error: Exception) -> Failure:
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        message = str(error.response.get("Error", {}).get("Message", ""))
        return answered(code_of(error), message, by_us=400 <= status < 500)
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return Failure(Cause.ACCESS, str(error), True, False)
    if isinstance(error, _NEVER_SENT):
        return Failure(Cause.UNREACHABLE, _short(error), True, True)
    if isinstance(error, ReadTimeoutError):
        return Failure(Cause.TIMED_OUT, _short(error), False, True)
    if isinstance(error, HTTPClientError):
        return Failure(Cause.DISCONNECTED, _short(error), False, True)
    return Failure(Cause.DISCONNECTED, f"{type(error).__name__}: {_short(error)}", False, True)


def answered(code: str, message: str, *, by_us: bool) -> Failure:
    """Of an answer, whether to a call or to one entry of a batch; `by_us`: it blames the sender."""
    detail = f"{code}: {' '.join(message.split())}"[:300] if message else code
    if code in MISSING:
        return Failure(Cause.TOPIC_MISSING, detail, True, False)
    if code in _ACCESS:
        return Failure(Cause.ACCESS, detail, True, False)
    if code in _THROTTLED:
        return Failure(Cause.QUEUE_FULL, detail, True, True)
    if not by_us:
        return Failure(Cause.NACKED, detail, False, True)
    return Failure(Cause.TOO_LARGE if code in _TOO_LARGE else Cause.INVALID, detail, True, False)


def translated(error: Exception, doing: str) -> BrokerkitError:
    """The exception for `error`; `doing` says what was tried, and on what."""
    found = failure(error)
    text = f"{doing}: {found.detail}"
    if found.cause is Cause.TOPIC_MISSING:
        return NotFound(f"{text}; declare it first")
    if found.cause is Cause.ACCESS:
        return AccessRefused(f"{text}; see the URL's user and password, or AWS's credential chain, and its policies")
    if found.retry:
        return ConnectionLost(text)
    return ConfigurationError(text)


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
