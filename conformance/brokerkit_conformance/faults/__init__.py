"""Ways to make things fail on purpose, each of which leaves evidence that it did.

A fault knows processes, sockets and a codec it is handed; it knows no broker and no message's meaning.
"""

from __future__ import annotations


class DidNotFire(Exception):
    """A fault was set up and nothing fell into it: what was seen afterwards proves nothing."""


class CannotInduce(Exception):
    """This fault cannot be induced on this target; the text says why."""
