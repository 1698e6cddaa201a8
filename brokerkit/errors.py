"""Every exception brokerkit raises on purpose, in one small tree.

    BrokerkitError
    ├── ConfigurationError (ValueError)   the URL, an option, a name or an argument is wrong
    │   └── GuaranteeNotOffered           the broker, as configured, cannot give what was asked
    ├── NotSupported                      this broker has no such operation
    ├── NotFound                          topic, subscription or attached resource is missing
    ├── AccessRefused                     wrong credentials, or not allowed
    ├── ConnectionLost                    the broker cannot be reached, or the session with it ended
    ├── Closed                            the object was closed, or belongs to another process
    │   └── Forked                        used in a child process after a fork
    ├── PositionLost                      a subscription's place in the topic is gone
    ├── SendError                         how a send ended, when it was not confirmed
    │   ├── SendRefused                   it is not stored, and never will be
    │   └── SendUnknown                   it may be stored, nobody can tell
    ├── IdempotencyKeyError               a call with an idempotency key was not made, or not recorded
    │   ├── KeyInUse                      it is in progress elsewhere
    │   ├── KeyReused                     it came with another request before
    │   ├── KeyLost                       its lease was over, and it is or will be another holder's
    │   ├── NoFinalAnswer                 the other side did not say how it ended
    │   └── WindowPassed                  the other side may have forgotten it
    ├── WebhookRefused                    a webhook that nobody trusted sent, or not now
    ├── ProducerFull                      the bound on messages or bytes in flight is reached
    └── SettleError                       a delivery cannot be settled
        ├── AlreadySettled                ack, nack or reject was called before
        └── LeaseLost                     the lease, session or assignment is over

Messages say what was wrong and what to do. No message carries a secret or a body.
"""

from __future__ import annotations

from typing import Any


class BrokerkitError(Exception):
    """Root of the tree."""


class ConfigurationError(BrokerkitError, ValueError):
    """The URL, an option, a name or an argument is wrong; nothing was sent to a broker."""


class GuaranteeNotOffered(ConfigurationError):
    """The broker, as configured, cannot give the guarantee asked for; the message says what can."""


class NotSupported(BrokerkitError):
    """This broker has no such operation; the message says what to use instead."""


class NotFound(BrokerkitError):
    """The topic, subscription, queue, exchange or group does not exist."""


class AccessRefused(BrokerkitError):
    """The broker refused the credentials, or the operation is not allowed to them."""


class ConnectionLost(BrokerkitError):
    """The broker cannot be reached, or the session with it has ended."""


class Closed(BrokerkitError):
    """The object was closed before."""


class Forked(Closed):
    """The object was made in a parent process; connect again after the fork."""


class PositionLost(BrokerkitError):
    """The broker no longer knows, or no longer holds, the place where a subscription goes on."""


class SendError(BrokerkitError):
    """A send that did not end confirmed."""


class SendRefused(SendError):
    """Never written, returned, or answered in a way that excludes storage on every attempt.

    `cause` is one of the names in `brokerkit.driver.Cause`.
    """

    def __init__(self, message: str, cause: str = "refused") -> None:
        super().__init__(message)
        self.cause = cause


class SendUnknown(SendError):
    """The message may or may not be stored. Send again only with the same message id."""


class ProducerFull(BrokerkitError):
    """The producer's bound on messages or bytes in flight is reached and the wait for room is over."""


class IdempotencyKeyError(BrokerkitError):
    """A call with an idempotency key that was not made, or whose result was not recorded."""


class KeyInUse(IdempotencyKeyError):
    """Somebody else works on this key; try again when `seconds` are over at the latest, when the lease is."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class KeyReused(IdempotencyKeyError):
    """The same key with another request: a mistake of the caller, which no retry mends."""


class KeyLost(IdempotencyKeyError):
    """The lease was over and another holder took the key: nothing was recorded for this one."""


class NoFinalAnswer(IdempotencyKeyError):
    """The other side did not answer, or not for good: it may have happened. `answer` is the last one that came."""

    def __init__(self, message: str, answer: Any = None) -> None:
        super().__init__(message)
        self.answer = answer


class WindowPassed(IdempotencyKeyError):
    """Too long ago for the other side to remember the key: sent again, it might be done twice."""


class WebhookRefused(BrokerkitError):
    """A webhook whose signature does not fit, or whose time is not now."""


class SettleError(BrokerkitError):
    """A delivery that can no longer be settled."""


class AlreadySettled(SettleError):
    """`ack`, `nack` or `reject` was called on this delivery before."""


class LeaseLost(SettleError):
    """The lease, the session or the assignment is over: the message is, or will be, somebody else's."""
