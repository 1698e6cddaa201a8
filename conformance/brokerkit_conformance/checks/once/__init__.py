"""Effects exactly once: one file for each failure point of effects that are rows in a store, or that idempotency
keys in a store guard. A check knows no store by
name. What it counts is money: a charge a message, in a ledger that outlives whoever is killed."""

ORDER = (
    "killed_before_commit",
    "killed_before_ack",
    "sent_twice",
    "two_workers",
    "commit_lost",
    "store_killed",
    "lease_expired",
    "checkpoint",
    "sent_after_window",
    "dedup_in_memory",
    "relay_killed",
    "key_holder_killed",
    "key_holder_frozen",
    "key_with_another_body",
    "everything",
)
