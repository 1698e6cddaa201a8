"""Outcomes from confirms and returns in every order, without a broker."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from brokerkit_rabbitmq.encoding import content
from brokerkit_rabbitmq.sender import RabbitSender
from brokerkit_rabbitmq.session import ACK, NACK, RETURN
from brokerkit_rabbitmq.settings import RabbitSettings

from brokerkit.driver import Cause, Confirmed, Outcome, Refused, Unknown
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message


class Wire:
    """A session whose I/O thread is the caller, and what the broker says on it."""

    def __init__(self) -> None:
        self.over = None
        self.connection = SimpleNamespace(
            params=SimpleNamespace(frame_max=131072),
            add_on_connection_blocked_callback=lambda _: None,
            add_on_connection_unblocked_callback=lambda _: None,
        )
        self.outcomes: list[Outcome] = []
        self.ended: Callable[[str], None]
        settings = RabbitSettings(max_body_bytes=100)
        self.sender = RabbitSender(
            self,  # type: ignore[arg-type]
            ("topic", ""),
            Guarantee.AT_LEAST_ONCE,
            settings,
            self.outcomes.extend,
            SimpleNamespace(disconnected=None),  # type: ignore[arg-type]
        )

    def call(self, *_: Any) -> None: ...

    def tell(self, ended: Callable[[str], None], _: Any) -> None:
        self.ended = ended

    def post(self, callback: Callable[[], None]) -> None:
        callback()

    def write(self, _: bytes) -> None: ...

    def unsent(self) -> int:
        return 0

    def send(self, *ids: str, size: int = 1) -> None:
        assert self.sender.send([Message(b"x" * size, id=id) for id in ids]) == len(ids)

    def confirm(self, tag: int, *, multiple: bool = False, method: bytes = ACK) -> None:
        self.connection.methods[method](struct.pack(">QB", tag, multiple))
        self.connection.after_read()

    def come_back(self, id: str) -> None:
        header = b"".join(content(Message(b"x", id=id), 1, b"\x02", 131072)[1:3])
        self.connection.contents[RETURN](b"", header, b"x")

    def seen(self) -> dict[int, type]:
        found: dict[int, type] = {}
        for outcome in self.outcomes:
            for number in range(outcome.first, outcome.last + 1):
                assert number not in found, "two outcomes"
                found[number] = type(outcome)
        return found


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.mark.parametrize(
    "confirms",
    [
        [(4, True)],
        [(1, False), (2, False), (3, False), (4, False)],
        [(3, False), (1, False), (4, True)],
        [(4, False), (2, True), (3, True)],
        [(2, True), (4, False), (4, True), (3, False)],
    ],
)
def test_each_message_is_confirmed_once_in_whatever_order(wire: Wire, confirms: Sequence[tuple[int, bool]]) -> None:
    wire.send("a", "b", "c", "d")
    for tag, multiple in confirms:
        wire.confirm(tag, multiple=multiple)
    assert wire.seen() == dict.fromkeys(range(4), Confirmed)


def test_what_a_read_brings_is_one_range(wire: Wire) -> None:
    wire.send(*(f"id-{number}" for number in range(1000)))
    wire.confirm(1000, multiple=True)
    assert wire.outcomes == [Confirmed(0, 999)]


def test_numbers_go_on_past_what_is_refused_here(wire: Wire) -> None:
    wire.send("a")
    wire.send("large", size=101)
    wire.send("b")
    wire.confirm(2, multiple=True)
    assert wire.seen() == {0: Confirmed, 1: Refused, 2: Confirmed}


def test_a_nack_is_unknown(wire: Wire) -> None:
    wire.send("a", "b")
    wire.confirm(1, method=NACK)
    wire.confirm(2)
    assert wire.seen() == {0: Unknown, 1: Confirmed}


def test_a_returned_message_is_refused_and_its_neighbours_are_not(wire: Wire) -> None:
    wire.send("a", "b", "c")
    wire.come_back("b")
    wire.confirm(3, multiple=True)
    assert wire.seen() == {0: Confirmed, 1: Refused, 2: Confirmed}
    (refused,) = (each for each in wire.outcomes if isinstance(each, Refused))
    assert refused.cause is Cause.UNROUTABLE


def test_copies_of_one_id_are_refused_when_all_come_back(wire: Wire) -> None:
    wire.send("same", "same", "other")
    wire.come_back("same")
    wire.come_back("same")
    wire.confirm(3, multiple=True)
    assert wire.seen() == {0: Refused, 1: Refused, 2: Confirmed}


def test_copies_of_one_id_are_unknown_when_one_comes_back(wire: Wire) -> None:
    wire.send("same", "same")
    wire.come_back("same")
    wire.confirm(2, multiple=True)
    assert wire.seen() == {0: Unknown, 1: Unknown}


def test_a_return_of_a_later_copy_does_not_refuse_an_earlier_one(wire: Wire) -> None:
    """The first of three came back and then the third: the second may be stored."""
    wire.send("same", "same")
    wire.come_back("same")
    wire.confirm(1)
    wire.send("same")
    wire.come_back("same")
    wire.confirm(2)
    wire.confirm(3)
    assert wire.seen() == {0: Unknown, 1: Unknown, 2: Unknown}


def test_an_id_that_came_back_is_sent_again_with_a_clean_slate(wire: Wire) -> None:
    wire.send("a")
    wire.come_back("a")
    wire.confirm(1)
    wire.send("a")
    wire.confirm(2)
    assert wire.seen() == {0: Refused, 1: Confirmed}


def test_the_end_of_the_session_gives_the_rest_its_outcome(wire: Wire) -> None:
    wire.send("a", "b", "c")
    wire.confirm(2)
    wire.ended("cut")
    assert wire.seen() == {0: Unknown, 1: Confirmed, 2: Unknown}
