"""A broker that does not tell what a subscription holds is read until nothing came for longer than a redelivery."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from brokerkit_conformance.history import Journal
from brokerkit_conformance.story import Story

from brokerkit.errors import ConnectionLost, NotSupported
from brokerkit.guarantees import Claims, Properties

BOUND = 2.0


class Target:
    """As much of a target as a drain asks for; `depth` is what it answers, or raises."""

    name = "scripted"

    def __init__(self, depth: int | Exception) -> None:
        self.answer = depth

    def claims(self, *_: str) -> Claims:
        return Claims(properties=Properties(redelivery_seconds=BOUND))

    @contextmanager
    def connect(self, settings: Mapping[str, str]) -> Iterator[Any]:
        yield SimpleNamespace(depth=self._depth)

    def _depth(self, *_: str) -> int:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def story(folder: Path, depth: int | Exception) -> Story:
    return Story(Target(depth), "check", "none", "at_least_once", "at_least_once", trials=1, seed=0, directory=folder)


def left(made: Story, began: float) -> bool:
    made.tail.refresh()
    return not made._nothing_left("work", made.depth(), began)


@pytest.mark.parametrize(("depth", "is_left"), [(0, False), (3, True), (ConnectionLost("for now"), True)])
def test_a_depth_that_is_told_decides(tmp_path: Path, depth: int | Exception, is_left: bool):
    made = story(tmp_path, depth)
    assert left(made, began=time.monotonic() - 100) is is_left


def test_an_untold_depth_is_nothing_once_nothing_came_for_long_enough(tmp_path: Path):
    made = story(tmp_path, NotSupported("it is not told"))
    now = time.monotonic()
    assert left(made, began=now)
    assert not left(made, began=now - 1.6 * BOUND)


def test_what_came_a_moment_ago_may_have_more_behind_it(tmp_path: Path):
    made = story(tmp_path, NotSupported("it is not told"))
    began = time.monotonic() - 100
    assert not left(made, began)
    other = Journal(tmp_path / "consumer-1.jsonl", "consumer-1")
    other.write("receive", "ok", "m1", subscription="elsewhere")
    assert not left(made, began)
    other.write("receive", "ok", "m2", subscription="work")
    other.close()
    assert left(made, began)
