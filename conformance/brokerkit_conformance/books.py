"""Two tables in a store, a cell's own: what was charged, one row a charge, and what is on each account by now.

The statements are the SQL that every store takes, with values of the suite's own making written into them, for the
client libraries do not agree on a mark for parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any, NamedTuple

from brokerkit.errors import BrokerkitError
from brokerkit.once.stores import store_for
from brokerkit_conformance.money import ACCOUNTS, account_of, dollars_of


class Charge(NamedTuple):
    """One row. `made_at` is CLOCK_MONOTONIC in nanoseconds."""

    message: str
    dollars: int
    account: int
    worker: str
    made_at: int


class Books:
    """`name` tells a cell's tables from others'. One thread; a connection of its own, made anew when it is lost."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self._url = url
        self._store = store_for(url)
        self._connection: Any = None
        self._charged: set[str] = set()

    def create(self) -> None:
        with closing(self._store.connect(self._url)) as connection:
            self._store.begin(connection)
            connection.execute(
                f"create table charges_{self.name} (message varchar(255) not null, dollars integer not null, "
                "account integer not null, worker varchar(100) not null, made_at bigint not null)"
            )
            connection.execute(
                f"create table balances_{self.name} (account integer primary key, dollars integer not null)"
            )
            accounts = ", ".join(f"({number}, 0)" for number in range(ACCOUNTS))
            connection.execute(f"insert into balances_{self.name} values {accounts}")
            self._store.commit(connection)

    def charged(self) -> set[str]:
        """The messages that are charged, as far as the store tells; while it does not answer, as it told last."""
        with suppress(BrokerkitError):
            self._charged = {str(row[0]) for row in self._rows("select distinct message from charges_{}")}
        return self._charged

    def charges(self) -> list[Charge]:
        """Every row. Raises ConnectionLost."""
        columns = ", ".join(Charge._fields)
        rows = self._rows(f"select {columns} from charges_{{}} order by made_at")
        return [Charge(str(row[0]), int(row[1]), int(row[2]), str(row[3]), int(row[4])) for row in rows]

    def balances(self) -> dict[str, int]:
        """Raises ConnectionLost."""
        rows = self._rows("select account, dollars from balances_{} order by account")
        return {str(row[0]): int(row[1]) for row in rows}

    def marks(self, consumer: str) -> int:
        """How many messages the inbox knows that this consumer has seen. Raises ConnectionLost."""
        [row] = self._rows(f"select count(*) from brokerkit_inbox where consumer = '{consumer}'")
        return int(row[0])

    def age_marks(self, consumer: str, age: timedelta) -> int:
        """As if so much time had gone by since the consumer saw its messages; how many. Raises ConnectionLost."""
        seconds = int(age.total_seconds())
        times = self._rows(f"select seen_at from brokerkit_inbox where consumer = '{consumer}'")
        # A store keeps times as seconds, or as what it calls a timestamp.
        less = seconds if all(isinstance(row[0], int) for row in times) else f"interval '{seconds} seconds'"
        self._rows(
            f"update brokerkit_inbox set seen_at = seen_at - {less} where consumer = '{consumer}' returning message_id"
        )
        return len(times)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._store.close(connection)

    def _rows(self, statement: str) -> list[Any]:
        try:
            if self._connection is None:
                self._connection = self._store.connect(self._url)
            return list(self._connection.execute(statement.format(self.name)).fetchall())
        except BrokerkitError:
            raise
        except Exception as error:  # each client library has its own
            self.close()
            raise BrokerkitError(f"the ledger cannot be read: {error}") from error


def charge(connection: Any, name: str, message: str, worker: str, made_at: int) -> None:
    """The row of one charge, in the transaction of the connection."""
    row = Charge(_text(message), dollars_of(message), account_of(message), _text(worker), made_at)
    connection.execute(
        f"insert into charges_{name} values ('{row.message}', {row.dollars}, {row.account}, '{row.worker}', "
        f"{row.made_at})"
    )


def add_to_balances(connection: Any, name: str, messages: Iterable[str]) -> None:
    """What the messages charge, account by account, in the same order everywhere, so that workers do not deadlock."""
    sums: Counter[int] = Counter()
    for message in messages:
        sums[account_of(message)] += dollars_of(message)
    for account, dollars in sorted(sums.items()):
        connection.execute(f"update balances_{name} set dollars = dollars + {dollars} where account = {account}")


def _text(value: str) -> str:
    return value.replace("'", "''")
