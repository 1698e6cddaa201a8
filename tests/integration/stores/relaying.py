"""A relay that is killed or frozen after the broker has confirmed its first batch and before the rows are deleted.

relaying.py STORE BROKER SIGKILL|SIGSTOP
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import brokerkit
from brokerkit.once import Relay


def main(store: str, url: str, by: str) -> None:
    with brokerkit.connect(url) as broker:
        relay = Relay(store, broker, batch=50)
        delete, ends = relay._store.delete, [signal.Signals[by]]

        def first_struck(*arguments: Any) -> None:
            if ends:
                os.kill(os.getpid(), ends.pop())
            delete(*arguments)

        relay._store.delete = first_struck  # type: ignore[method-assign]
        relay.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
