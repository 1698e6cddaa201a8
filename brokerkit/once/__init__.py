"""Effects exactly once: the broker hands a message over again, and the store knows it.

`broker.transactions(…, store=URL)` is the whole of it; `Inbox` and `Outbox` are the parts for a transaction of your
own, `Relay` sends what is in an outbox. Effects in other services have idempotency keys: `Keys`, and `Calls` for those
over HTTP. Tables come from `init(url)`, or as SQL from `script(url)`.
"""

from __future__ import annotations

from brokerkit.once.calls import Call, Calls
from brokerkit.once.inbox import Inbox
from brokerkit.once.keys import Held, Keys, derived_key, fingerprint
from brokerkit.once.outbox import Outbox
from brokerkit.once.relay import Relay
from brokerkit.once.stores.contract import Durability, Lag
from brokerkit.once.tables import durability, horizon, init, prune, script

__all__ = [
    "Call",
    "Calls",
    "Durability",
    "Held",
    "Inbox",
    "Keys",
    "Lag",
    "Outbox",
    "Relay",
    "derived_key",
    "durability",
    "fingerprint",
    "horizon",
    "init",
    "prune",
    "script",
]
