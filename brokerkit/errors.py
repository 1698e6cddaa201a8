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
    ├── ProducerFull                      the bound on messages or bytes in flight is reached
    └── SettleError                       a delivery cannot be settled
        ├── AlreadySettled                ack, nack or reject was called before
        └── LeaseLost                     the lease, session or assignment is over

Messages say what was wrong and what to do. No message carries a secret or a body.
"""


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


class SettleError(BrokerkitError):
    """A delivery that can no longer be settled."""


class AlreadySettled(SettleError):
    """`ack`, `nack` or `reject` was called on this delivery before."""


class LeaseLost(SettleError):
    """The lease, the session or the assignment is over: the message is, or will be, somebody else's."""
