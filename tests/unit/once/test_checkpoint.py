"""Where a checkpoint lies, and what of a batch is not behind it, told by a SQLite store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from brokerkit import once
from brokerkit.driver import Position
from brokerkit.errors import PositionLost
from brokerkit.events import Reporter
from brokerkit.once.checkpoint import Checkpoint
from brokerkit.once.stores import store_for


class Worker:
    """A consumer's checkpoint, and its connection to the store."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store = store_for(url)
        self.connection = self.store.connect(url)
        self.told: list[Any] = []
        self.checkpoint = Checkpoint(
            self.store, url, lambda topic: f"{topic}--ledger", Reporter("w", (self.told.append,))
        )

    def given(self, place: int, lane: int = 0, topic_id: str = "id-1") -> int:
        """The broker says that the partition goes on at this place; where it does."""
        [moved] = self.checkpoint.assigned([Position("payments", lane, place, topic_id)]).values()
        return int(moved.value)

    def begins(self, *offsets: int, lane: int = 0) -> list[int]:
        batch: Sequence[Any] = [SimpleNamespace(position=Position("payments", lane, offset)) for offset in offsets]
        return [int(delivery.position.value) for delivery in self.checkpoint.fresh(self.connection, batch)]  # type: ignore[union-attr]

    def commits(self) -> None:
        self.store.commit(self.connection)
        self.checkpoint.committed()

    def fails(self) -> None:
        self.store.rollback(self.connection)

    def hears_nothing(self) -> None:
        """It is committed, and the answer is lost."""
        self.store.commit(self.connection)


@pytest.fixture
def url(tmp_path: Path) -> str:
    made = f"sqlite:///{tmp_path / 'store.db'}"
    once.init(made)
    return made


@pytest.fixture
def worker(url: str) -> Iterator[Worker]:
    made = Worker(url)
    yield made
    made.store.close(made.connection)


@pytest.fixture
def other(url: str) -> Iterator[Worker]:
    made = Worker(url)
    yield made
    made.store.close(made.connection)


def test_it_begins_where_the_broker_says_until_something_is_committed(worker: Worker, other: Worker):
    assert worker.given(7) == 7
    assert worker.begins(7, 8, 12) == [7, 8, 12]
    worker.commits()
    assert other.given(0) == 13
    assert other.begins(13) == [13]


def test_what_failed_is_new_again(worker: Worker):
    worker.given(0)
    worker.begins(0, 1)
    worker.fails()
    assert worker.begins(0, 1) == [0, 1]


def test_a_commit_whose_answer_was_lost_is_known_and_what_follows_it_is_new(worker: Worker):
    worker.given(0)
    worker.begins(0, 1)
    worker.hears_nothing()
    assert worker.begins(0, 1, 2) == [2]
    worker.commits()
    assert worker.begins(3) == [3]


def test_what_the_successor_has_done_is_not_done_again_by_whoever_wakes_up_late(worker: Worker, other: Worker):
    worker.given(0)
    worker.begins(0, 1)
    worker.commits()
    other.given(0)
    other.begins(2, 3, 4)
    other.commits()
    assert worker.begins(2, 3) == []
    worker.commits()
    assert other.begins(5) == [5], "nobody set it back"


def test_a_late_commit_does_not_hide_what_a_new_assignment_repeats(worker: Worker):
    worker.given(0)
    worker.begins(0, 1)
    worker.given(0)  # read before the commit
    worker.commits()
    assert worker.begins(0, 1, 2) == [2]


def test_a_checkpoint_that_lies_before_what_was_given_is_an_error(worker: Worker):
    worker.given(50)
    worker.begins(50)
    worker.commits()
    worker.store.begin(worker.connection)
    worker.store.execute(worker.connection, "update brokerkit_checkpoints set place = 10")
    worker.store.commit(worker.connection)
    with pytest.raises(PositionLost, match=r"is 10, behind 51, from where"):
        worker.begins(51)
    worker.fails()
    assert worker.given(51) == 10


def test_a_topic_made_anew_has_no_place_yet(worker: Worker):
    worker.given(0)
    worker.begins(*range(100))
    worker.commits()
    assert worker.given(0, topic_id="id-2") == 0
    assert worker.begins(0, 1) == [0, 1]
    worker.commits()
    assert worker.given(0, topic_id="id-2") == 2


def test_partitions_have_places_of_their_own(worker: Worker):
    worker.given(0, lane=0)
    worker.given(5, lane=1)
    worker.begins(0, lane=0)
    worker.commits()
    worker.begins(5, 6, lane=1)
    worker.commits()
    assert (worker.given(0, lane=0), worker.given(0, lane=1)) == (1, 7)


def test_a_store_that_cannot_be_asked_is_told_of_and_asked_later(worker: Worker, url: str):
    worker.given(0)
    worker.begins(0, 1)
    worker.commits()
    worker.checkpoint._url = "sqlite:////nowhere/at/all.db"
    assert worker.given(0) == 0
    assert "could not be read" in worker.told[-1].detail
    assert worker.begins(0, 1, 2) == [2]
