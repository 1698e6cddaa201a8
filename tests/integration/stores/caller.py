"""Calls a service for a message, in a process of its own: STORE URL. Another body each time; prints the answer."""

from __future__ import annotations

import secrets
import sys
from datetime import timedelta

from brokerkit.once import Call, Calls, Keys


def main() -> None:
    store, url = sys.argv[1:]
    with Keys(store, "ledger", lease=3.0) as keys:
        calls = Calls(keys, window=timedelta(days=1))
        answer = calls.call("evt-1", "charge", lambda: Call("POST", url, secrets.token_bytes(16)), wait=30)
        print(answer.body.decode())


main()
