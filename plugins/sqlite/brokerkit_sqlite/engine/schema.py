"""The file: its tables, and what a raw SQL client may read and write.

- A message is stored once per topic, in `messages`. Its row id, `seq`, is the topic's number times 2^40 plus its
  place in the topic (1, 2, 3, …), so that one topic's messages lie together and no index is needed.
- A subscription is a cursor: it has not yet been handed anything from `next` on. What it was handed, or what waits
  for a delay, has a small row in `deliveries`; `lease` is NULL while it waits until `due`, and otherwise names the
  hand-over that holds it until `due`.
- `subscriptions.expiry` is never later than the first end of a lease, so that nobody looks for ended ones before.
- A message is deleted once no subscription needs it and it lies below its topic's `floor`. Without retention the
  floor is out of reach; with retention it follows the clock.
- Topic 1 has no name: it holds messages meant for one subscription alone.
- `ids` remembers the ids of exactly-once sends.

Raw clients use the view `published`: `SELECT * FROM published WHERE topic = 'payments'` shows what is stored, and
`INSERT INTO published(topic, body) VALUES ('payments', x'2a')` sends. Columns left out are NULL; `headers` is a JSON
object of strings, a bytes value being `{"base64": "…"}`. Times are milliseconds since the epoch.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from brokerkit.errors import ConfigurationError

APPLICATION = 0x626B7174
VERSION = 1
SHIFT = 40
MASK = (1 << SHIFT) - 1
NEVER = 1 << 62
SIDE = 1
OLDEST = (3, 35, 0)

_TABLES = f"""
CREATE TABLE facts(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE topics(
    topic INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, last INTEGER NOT NULL,
    retention INTEGER NOT NULL DEFAULT 0, floor INTEGER NOT NULL DEFAULT {NEVER});
CREATE TABLE subscriptions(
    subscription INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER NOT NULL, name TEXT NOT NULL,
    next INTEGER NOT NULL, expiry INTEGER NOT NULL DEFAULT {NEVER},
    attempts INTEGER, dead_letter TEXT, handling_seconds REAL, lease_seconds REAL, UNIQUE(topic, name));
CREATE TABLE instances(
    subscription INTEGER NOT NULL, name TEXT NOT NULL, session INTEGER NOT NULL,
    PRIMARY KEY(subscription, name)) WITHOUT ROWID;
CREATE TABLE messages(
    seq INTEGER PRIMARY KEY, id TEXT, key TEXT, content_type TEXT, published_at INTEGER, stored_at INTEGER,
    due INTEGER, headers TEXT, body BLOB);
CREATE TABLE deliveries(
    subscription INTEGER NOT NULL, seq INTEGER NOT NULL, attempt INTEGER NOT NULL, due INTEGER NOT NULL,
    lease INTEGER, PRIMARY KEY(subscription, seq)) WITHOUT ROWID;
CREATE INDEX waiting ON deliveries(subscription, due, seq) WHERE lease IS NULL;
CREATE TABLE ids(
    n INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL,
    at INTEGER NOT NULL, UNIQUE(topic, id));
CREATE VIEW published AS
    SELECT name AS topic, seq & {MASK} AS position, id, key, content_type, published_at, headers, body
    FROM messages JOIN topics ON topics.topic = messages.seq >> {SHIFT};
CREATE TRIGGER publish INSTEAD OF INSERT ON published BEGIN
    SELECT raise(ABORT, 'no such topic, or no subscription on it') WHERE NOT EXISTS (
        SELECT 1 FROM topics JOIN subscriptions USING (topic) WHERE topics.name = NEW.topic);
    UPDATE topics SET last = last + 1 WHERE name = NEW.topic;
    INSERT INTO messages SELECT last, NEW.id, NEW.key, NEW.content_type, NEW.published_at,
        CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER), NULL, NEW.headers, NEW.body
        FROM topics WHERE name = NEW.topic;
END;
INSERT INTO topics(topic, name, last) VALUES ({SIDE}, '', {SIDE << SHIFT});
INSERT INTO facts VALUES ('session', 0);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""


def check_version(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> None:
    if version < OLDEST:
        raise ConfigurationError(
            f"this Python's SQLite is {'.'.join(map(str, version))}; 3.35 or newer is needed (RETURNING)"
        )


def is_ours(execute: Callable[[str], sqlite3.Cursor]) -> bool:
    """Whether the tables are there; False for an empty file. Raises ConfigurationError for a stranger's file."""
    # In this order: whoever makes the file at this moment commits its tables and its application id together.
    (tables,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = execute("PRAGMA application_id").fetchone()
    if application == APPLICATION:
        (version,) = execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise ConfigurationError(
                f"the file has format {version}, this brokerkit reads {VERSION}: use the brokerkit that wrote it"
            )
        return True
    if tables or application:
        raise ConfigurationError("the file is another program's SQLite database: name a file of its own for the queue")
    return False


def create(connection: sqlite3.Connection) -> None:
    """Makes the tables inside the open transaction."""
    statement = ""
    for part in _TABLES.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
