"""The books of a demo, in a store of their own: one row a charge, and what they say in the end."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from brokerkit import once

DOLLARS = 50


@dataclass(frozen=True, slots=True)
class Way:
    """One way to work, and what may come of it."""

    title: str
    loses: bool = False
    """Whether payments may be never charged."""
    doubles: bool = False
    """Whether payments may be charged again."""


@dataclass(slots=True)
class Ledger:
    """What is in the books, against what ought to be."""

    way: Way
    payments: int
    sent: int = 0
    killed: int = 0
    charged: int = 0
    never: int = 0
    again: int = 0
    seconds: float = 0.0
    finished: bool = False

    @property
    def dollars(self) -> int:
        return self.charged * DOLLARS

    @property
    def ought(self) -> int:
        return self.payments * DOLLARS

    @property
    def outcome(self) -> str:
        """`lost money`, `doubled money`, `lost and doubled money` or `exact`."""
        words = [word for word, some in (("lost", self.never), ("doubled", self.again)) if some]
        return f"{' and '.join(words)} money" if words else "exact"

    @property
    def as_promised(self) -> bool:
        """Nothing happened that this way does not do."""
        return (self.way.loses or not self.never) and (self.way.doubles or not self.again)

    def audit(self, books: sqlite3.Connection) -> None:
        """Reads what is in the books, after the last charge."""
        counts = [count for (count,) in books.execute("select count(*) from charges group by payment")]
        self.charged = sum(counts)
        self.again = sum(count - 1 for count in counts)
        self.never = self.sent - len(counts)


def store_url(file: Path) -> str:
    return f"sqlite:///{quote(str(file))}"


def make_books(file: Path) -> sqlite3.Connection:
    once.init(store_url(file))
    books = open_books(file)
    books.execute("create table charges (payment text, dollars integer, process integer)")
    return books


def open_books(file: Path | str) -> sqlite3.Connection:
    """Each statement commits by itself, outside of `begin` and `commit`."""
    books = sqlite3.connect(file, timeout=30.0, isolation_level=None)
    books.execute("pragma synchronous = full")
    return books


def charge(books: sqlite3.Connection, payment: str) -> None:
    books.execute("insert into charges (payment, dollars, process) values (?, ?, ?)", (payment, DOLLARS, os.getpid()))
