"""What a ledger says: sums of charges and of balances, from the lines of a history. Pure.

A message charges as many dollars as its id says, to the account that its id says, so that whoever reads a history can
add it up again. The ledger is a store's: one row a charge, and one row an account with its balance, written in one
transaction. After the drain the supervisor writes down what it reads there: `charge` for each row, `ledger` with the
balances.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brokerkit_conformance.history import History

ACCOUNTS = 8


def dollars_of(id: str) -> int:
    """1 to 99: charges of different messages rarely make up for each other."""
    return 1 + zlib.crc32(id.encode()) % 99


def account_of(id: str) -> int:
    return zlib.crc32(id.encode()[::-1]) % ACCOUNTS


def sums(history: History) -> Mapping[str, int]:
    """`owed` for what was confirmed, or unknown and charged; `charged`, `balances`, and `rows`. Empty where no ledger
    was read."""
    ledgers = history.of("ledger", "ok")
    if not ledgers:
        return {}
    charges = history.of("charge", "ok")
    charged = {event.id for event in charges if event.id is not None}
    sent = history.ids("send", "invoke")
    owed = history.ids("send", "ok") | (charged & sent)
    return {
        "owed": sum(dollars_of(id) for id in owed),
        "charged": sum(int(event.get("dollars") or 0) for event in charges),
        "balances": sum(int(dollars) for dollars in (ledgers[-1].get("balances") or {}).values()),
        "rows": len(charges),
    }


def wrong(history: History) -> Iterator[str]:
    """What no claim allows, a sentence each: books that do not agree with themselves."""
    found = sums(history)
    if not found:
        return
    if found["charged"] != found["balances"]:
        yield f"the balances add up to ${found['balances']:,}, and the charges to ${found['charged']:,}"
    for event in history.of("charge", "ok"):
        if event.get("dollars") != dollars_of(str(event.id)):
            yield f"{event.id} was charged ${event.get('dollars')} instead of ${dollars_of(str(event.id))}"


def told(history: History) -> str:
    """The ledger in a sentence; empty where none was read."""
    found = sums(history)
    if not found:
        return ""
    return (
        f"the ledger: ${found['charged']:,} in {found['rows']} charges, ${found['balances']:,} in balances; "
        f"${found['owed']:,} owed"
    )
