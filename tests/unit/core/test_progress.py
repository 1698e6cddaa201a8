"""Contiguous prefixes of settled positions, in every order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from brokerkit.progress import Progress


def handed_out(*positions: int) -> Progress[str]:
    progress: Progress[str] = Progress(positions[0])
    for position in positions:
        progress.hand_out(position, f"message {position}")
    return progress


def test_the_place_stays_before_the_first_that_is_open() -> None:
    progress = handed_out(5, 6, 7)
    progress.settle(6)
    assert progress.advance() == []
    assert progress.place == 5
    progress.settle(5)
    assert progress.advance() == [5, 6]
    assert progress.place == 7


def test_everything_settled_leaves_the_place_behind_the_last() -> None:
    progress = handed_out(5, 9)  # a gap, as compaction leaves it
    assert progress.settle(9)
    assert progress.settle(5)
    assert progress.advance() == [5, 9]
    assert progress.place == 10


def test_a_position_settles_once() -> None:
    progress = handed_out(5)
    assert progress.settle(5)
    assert not progress.settle(5)
    assert not progress.settle(6)


def test_many_settle_like_each_by_itself() -> None:
    progress = handed_out(1, 2, 3, 4)
    assert progress.settle_all([2, 1, 2, 9]) == [2, 9]
    assert progress.advance() == [1, 2]
    progress.give_back(3)
    assert progress.settle_all([4]) == [4]


def test_the_place_never_passes_what_was_given_back() -> None:
    progress = handed_out(1, 2, 3, 4)
    progress.settle(3)
    assert progress.give_back(2) == [3]
    assert not progress.settle(4)
    assert progress.settle(1)
    assert progress.advance() == [1]
    assert progress.place == 2


@given(st.lists(st.integers(0, 200), min_size=1, max_size=60, unique=True), st.data())
def test_in_any_order_the_place_is_the_first_open_one(positions: list[int], data: st.DataObject) -> None:
    positions.sort()
    progress = handed_out(*positions)
    passed: list[int] = []
    left = set(positions)
    for position in data.draw(st.permutations(positions)):
        progress.settle(position)
        left.discard(position)
        if data.draw(st.booleans()):
            passed += progress.advance()
            assert all(one < min(left, default=201) for one in passed)
            assert not [one for one in left if one < progress.place]
    passed += progress.advance()
    assert passed == positions
    assert progress.place == positions[-1] + 1
