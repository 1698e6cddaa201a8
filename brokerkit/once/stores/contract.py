"""What a store is to the rest of `once`: a little SQL over a connection that somebody else may own."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from brokerkit.errors import BrokerkitError, ConfigurationError, ConnectionLost, NotFound
from brokerkit.guarantees import Claim, Likelihood

T = TypeVar("T")

VERSION = 4
"""Of the tables. Raise it with another script in each store."""

SHARDS = 16
"""Of an outbox: so many relays at most can share it."""

LONGEST_ID = 255
"""Bytes of an id that are kept as they are."""

_FORGET = "delete from brokerkit_inbox where consumer = :consumer and message_id = :id"
_REFUSED = """\
select id, topic, message_id, refused from brokerkit_outbox where outbox = :outbox and refused is not null
order by id limit :most"""


class Row(NamedTuple):
    """A message in an outbox. `shard`: which of the relays that share the work takes it. `headers`: as JSON."""

    shard: int
    topic: str
    message_id: str
    key: str | None
    headers: str | None
    content_type: str | None
    published_at: int
    body: bytes | None


class Waiting(NamedTuple):
    """A row that a relay takes out. A bare tuple of these will do."""

    id: int
    topic: str
    message_id: str
    key: str | None
    headers: str | None
    content_type: str | None
    published_at: int
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Lag:
    """What an outbox still holds: `rows` that wait, the age of the oldest of them in seconds (0 when there is none),
    and how many messages the broker `refused`, which wait for somebody to look at them."""

    rows: int
    seconds: float
    refused: int


@dataclass(frozen=True, slots=True)
class Durability:
    """What a commit of this store survives, as its settings say; no test of ours can cut the power."""

    survives: Literal["power_loss", "process_kill", "nothing"]
    settings: Mapping[str, str]
    """The settings that were read, as the store names them."""
    why: str = ""
    """What makes it less than `power_loss`."""

    def claim(self, known_by: str = "its message id for as long as the inbox is not pruned of it") -> Claim:
        """What may happen to an effect in this store. A commit that the store forgets is lost, for its message has
        been acked. `known_by`: what a repetition is recognised by."""
        sure = self.survives == "power_loss"
        conditions = [self.why] if self.why else []
        conditions.append(f"a repetition is recognised by {known_by}")
        return Claim(
            loss=Likelihood.NEVER if sure else Likelihood.POSSIBLE,
            duplicate=Likelihood.NEVER,
            condition="; ".join(conditions),
            source="settings read when the store was opened",
        )


class Store(ABC):
    """One kind of database. Holds no state: every call names its connection, which is the database's own object, used
    by one thread at a time. Where nothing else is said, calls raise the database's own errors."""

    product: str
    schemes: tuple[str, ...]
    scripts: Sequence[str]
    """SQL that leads from each version of the tables to the next, the first from none. Run as a whole, each may
    be run again."""

    # ------------------------------------------------------------ connections of our own

    @abstractmethod
    def connect(self, url: str, *, create: bool = False) -> Any:
        """A connection whose `commit` and `rollback` refuse, for the transaction is not the user's to end.

        Raises ConnectionLost, AccessRefused, NotFound for a file that is missing and not to be created, and
        ConfigurationError; no message holds a password."""

    def opened(self, url: str, first: Callable[[Any], T]) -> tuple[Any, T]:
        """A connection of our own to a store that has its tables, and what `first` returned on it; closed again when
        either fails. Raises as `connect` and `check` do, and ConnectionLost when it was lost meanwhile."""
        connection = self.connect(url)
        try:
            self.check(connection, url)
            return connection, first(connection)
        except BaseException as error:
            lost = self.lost(connection)
            self.close(connection)
            if lost:
                raise ConnectionLost("the store's connection was lost as soon as it was there") from error
            raise

    @abstractmethod
    def begin(self, connection: Any) -> None: ...

    @abstractmethod
    def commit(self, connection: Any) -> None:
        """Raises ConfigurationError when the transaction was ended by somebody else, and SwallowedError when it can
        only be rolled back. After another error it has not happened, unless the connection is `lost`."""

    @abstractmethod
    def rollback(self, connection: Any) -> None:
        """Also where there is nothing to roll back, and on a connection that is lost: never raises for these."""

    @abstractmethod
    def close(self, connection: Any) -> None: ...

    @abstractmethod
    def failed(self, connection: Any) -> bool:
        """Whether the open transaction can only be rolled back, as a whole or to a savepoint."""

    @abstractmethod
    def lost(self, connection: Any) -> bool:
        """Whether the connection is of no more use; what a commit on it did is not known."""

    # ------------------------------------------------------------ errors

    @abstractmethod
    def conflict(self, error: BaseException) -> bool:
        """Whether the transaction lost against another one and would succeed when run again: a deadlock, a
        serialization failure, a lock that took too long. Looks at causes too, for libraries wrap errors."""

    @abstractmethod
    def missing_table(self, error: BaseException) -> bool: ...

    @abstractmethod
    def own(self, error: BaseException) -> bool:
        """Whether it comes from the database's client library."""

    # ------------------------------------------------------------ any connection

    @abstractmethod
    def owns(self, connection: Any) -> bool:
        """Whether it is a connection of this database's client library."""

    @abstractmethod
    def in_transaction(self, connection: Any) -> bool:
        """Whether statements on it are in a transaction, or begin one, rather than commit each by itself."""

    @abstractmethod
    def execute(self, connection: Any, sql: str) -> None:
        """Runs statements without parameters in the transaction that there is."""

    @abstractmethod
    def run(self, connection: Any, sql: str, values: Mapping[str, Any]) -> Any:
        """Runs one statement, whose parameters are written `:name`, with `{now}` for the database's clock in
        milliseconds; returns the cursor."""

    @abstractmethod
    def bound(self, connection: Any, seconds: float) -> None:
        """How long a statement may wait for the transactions of others; after that it fails as a `conflict`."""

    @abstractmethod
    def version(self, connection: Any) -> int:
        """Of the tables; 0 where there are none."""

    @abstractmethod
    def durability(self, connection: Any) -> Durability: ...

    @abstractmethod
    def fresh(self, connection: Any, consumer: str, ids: Sequence[str]) -> set[str]:
        """Records the ids, which are sorted and distinct, by one statement; returns those that were not there. Waits
        for whoever is about to record the same, and takes over what he rolls back."""

    def begin_fresh(self, connection: Any, consumer: str, ids: Sequence[str]) -> set[str]:
        """`begin`, then `fresh` if there are any ids; where it can, in one round trip."""
        self.begin(connection)
        return self.fresh(connection, consumer, ids) if ids else set()

    def begin_run(self, connection: Any, sql: str, values: Mapping[str, Any]) -> int:
        """`begin`, then `run` with text or numbers; where it can, in one round trip. How many rows that were."""
        self.begin(connection)
        return int(self.run(connection, sql, values).rowcount)

    def forget(self, connection: Any, consumer: str, id: str) -> None:
        """Takes one mark back, in the transaction that there is."""
        self.run(connection, _FORGET, {"consumer": consumer, "id": id})

    @abstractmethod
    def prune(self, connection: Any, seconds: float, most: int) -> int:
        """Removes up to `most` of what was recorded longer ago than that, by the database's clock; how many."""

    # ------------------------------------------------------------ the outbox

    @abstractmethod
    def write(self, connection: Any, outbox: str, rows: Sequence[Row]) -> None:
        """Adds rows in that order, in the transaction that there is, and wakes the relay when it commits."""

    @abstractmethod
    def lag(self, connection: Any, outbox: str) -> Lag: ...

    def refused(self, connection: Any, outbox: str, most: int) -> Sequence[tuple[int, str, str, str]]:
        """Row id, topic, message id and reason of the first `most` refused messages."""
        found: list[tuple[int, str, str, str]] = self.run(
            connection, _REFUSED, {"outbox": outbox, "most": most}
        ).fetchall()
        return found

    @abstractmethod
    def release(self, connection: Any, outbox: str, *, drop: bool) -> int:
        """The refused messages wait again, or are dropped; how many."""

    # ------------------------------------------------------------ a relay's connection

    @abstractmethod
    def prepare(self, connection: Any) -> None:
        """First thing on a connection that a relay uses. What it commits may be forgotten by a crash, for that only
        sends again, under the same id."""

    @abstractmethod
    def hold(self, connection: Any, outbox: str, shards: Sequence[int], owner: str, seconds: float) -> bool:
        """Whether these shards are this connection's alone: all of them or none. They stay so until `let_go`, the end
        of the connection, or, where the store does not see that end, for `seconds` after the last call."""

    @abstractmethod
    def let_go(self, connection: Any, outbox: str, owner: str) -> None: ...

    @abstractmethod
    def waiting(
        self,
        connection: Any,
        outbox: str,
        shards: Sequence[int],
        *,
        flying: Sequence[int],
        without: Sequence[str],
        most: int,
        most_bytes: int,
    ) -> Sequence[Waiting]:
        """The first rows, by id, of one snapshot: up to `most`, and `most_bytes` of bodies after the first. Leaves
        out those that are refused or follow a refused one of their topic and key, those in `flying` (ids, sorted),
        and those of the topics in `without`."""

    @abstractmethod
    def delete(self, connection: Any, ids: Sequence[int]) -> None:
        """Of an outbox. `ids` are sorted, and not empty."""

    @abstractmethod
    def refuse(self, connection: Any, id: int, reason: str) -> None: ...

    @abstractmethod
    def wait(self, connection: Any, seconds: float) -> None:
        """Returns when somebody has written to an outbox, or after so many seconds."""

    # ------------------------------------------------------------ the tables

    def check(self, connection: Any, url: str) -> None:
        """Raises NotFound when there are no tables, ConfigurationError when they are of another version."""
        version = self.version(connection)
        if version == 0:
            raise self.no_tables(url)
        if version < VERSION:
            raise ConfigurationError(
                f"the tables in {shown(url)} are of version {version}, this brokerkit wants {VERSION}: run "
                f"`brokerkit once init {shown(url)}`, or with --print to see the SQL"
            )
        if version > VERSION:
            raise ConfigurationError(
                f"the tables in {shown(url)} are of version {version}, this brokerkit knows {VERSION}: upgrade it"
            )

    def no_tables(self, url: str) -> BrokerkitError:
        return NotFound(
            f"{shown(url)} lacks brokerkit's tables: run `brokerkit once init {shown(url)}`, or with --print to see "
            "the SQL for your own migrations"
        )

    def script(self, version: int = 0) -> str:
        """What leads from that version to the one wanted."""
        return "".join(self.scripts[version:VERSION])


class SwallowedError(BrokerkitError):
    """A statement failed inside the block, its exception was swallowed, and the database refuses all that follows."""

    def __init__(self) -> None:
        super().__init__(
            "a statement failed in this block and its exception was caught there, after which the database keeps "
            "nothing of the transaction: put a savepoint around what may fail"
        )


def stored_id(id: str) -> str:
    """The id as it is kept: as it is, or its SHA-256 where it is longer than a database's index takes, or holds what a
    database's text does not."""
    data = id.encode("utf-8", "surrogatepass")
    if len(data) <= LONGEST_ID and "\0" not in id and data.decode("utf-8", "replace") == id:
        return id
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def shown(url: str) -> str:
    """The URL without a password."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    path = path.partition("?")[0]  # libpq takes a password there too
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{hosts}{slash}{path}"


def one_line(error: BaseException) -> str:
    """What it says; database clients say it in several."""
    return " ".join(str(error).split())


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came from."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__]


def not_yours() -> ConfigurationError:
    return ConfigurationError(
        "this transaction is committed when its block is left, together with the messages it came from: leave the "
        "block, or raise to roll it back"
    )


def ended_by_others() -> ConfigurationError:
    return ConfigurationError(
        "the block ended the store's transaction by a statement of its own (COMMIT, ROLLBACK, `with connection`): "
        "nothing was acked, leave that to brokerkit"
    )
