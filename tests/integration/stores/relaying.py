"""A relay that is killed: by SIGKILL, after the broker has confirmed its first batch and before the rows are deleted.

relaying.py STORE BROKER
"""

from __future__ import annotations

import os
import signal
import sys

import brokerkit
from brokerkit.once import Relay


def main(store: str, url: str) -> None:
    with brokerkit.connect(url) as broker:
        relay = Relay(store, broker, batch=50)
        relay._store.delete = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign, assignment, return-value]
        relay.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
