"""What the fault proxy sees of PostgreSQL's protocol."""

from __future__ import annotations

import struct

import pytest
from brokerkit_postgresql.wire import PostgresqlCodec

from brokerkit.driver import Frame

SSL = struct.pack(">II", 8, 80_877_103)
STARTUP = struct.pack(">II", 20, 196_608) + b"user\0me\0\0\0\0\0"


def message(letter: bytes, text: bytes) -> bytes:
    return letter + struct.pack(">I", len(text) + 4) + text


@pytest.fixture
def codec() -> PostgresqlCodec:
    """One that is past its greeting."""
    made = PostgresqlCodec()
    assert [frame.native for frame in made.client(SSL + STARTUP)] == ["request for TLS", "startup"]
    assert [frame.raw for frame in made.broker(b"N")] == [b"N"]
    return made


def kinds(frames: list[Frame]) -> list[str]:
    return [frame.kind for frame in frames]


@pytest.mark.parametrize("sql", [b"commit", b"COMMIT", b" commit "])
def test_a_commit_is_seen_in_a_query_and_in_a_parse(codec: PostgresqlCodec, sql: bytes):
    assert kinds(list(codec.client(message(b"Q", sql + b"\0")))) == ["commit"]
    assert kinds(list(codec.client(message(b"P", b"name\0" + sql + b"\0\0\0")))) == ["commit"]


def test_its_answer_is_seen_and_what_else_is_answered_is_not_it(codec: PostgresqlCodec):
    answers = message(b"C", b"INSERT 0 1\0") + message(b"C", b"COMMIT\0") + message(b"Z", b"I")
    assert kinds(list(codec.broker(answers))) == ["other", "commit_answer", "other"]


def test_a_word_in_a_statement_is_no_commit(codec: PostgresqlCodec):
    assert kinds(list(codec.client(message(b"Q", b"select 'commit'\0") + message(b"Q", b"rollback\0")))) == [
        "other",
        "other",
    ]


def test_nothing_is_lost_or_added_however_the_bytes_come():
    codec = PostgresqlCodec()
    sent = SSL + STARTUP + message(b"Q", b"begin\0") + message(b"Q", b"commit\0")
    frames = [frame for at in range(len(sent)) for frame in codec.client(sent[at : at + 1])]
    assert b"".join(frame.raw for frame in frames) == sent
    assert kinds(frames) == ["other", "other", "other", "commit"]


def test_behind_tls_all_passes_unseen():
    codec = PostgresqlCodec()
    list(codec.client(SSL))
    assert [frame.raw for frame in codec.broker(b"S\x16\x03")] == [b"S", b"\x16\x03"]
    assert kinds(list(codec.client(message(b"Q", b"commit\0")))) == ["other"]
