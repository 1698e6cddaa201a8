"""Other exactly-once loops under the suite's fire: ours neither loses nor doubles, and the fire is seen burning."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brokerkit_conformance.targets import Target, understand

ROOT = Path(__file__).parents[3]

pytestmark = [pytest.mark.prove, pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def fire() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        from benchmarks.fire import __main__ as fire

        yield fire


@pytest.fixture(scope="module")
def rows(fire: Any) -> list[Any]:
    seed = random.SystemRandom().randrange(1, 1 << 31)
    with Target(understand("kafka")) as target:
        found: list[Any] = fire.under_fire(target, seed, 3)
        print(fire.table(found, target, seed, 3))
    return found


def test_nothing_of_ours_is_lost_or_doubled(fire: Any, rows: list[Any]) -> None:
    ours = [row for row in rows if row.copier == fire.OURS]
    assert {row.check for row in ours} == set(fire.CHECKS)
    assert [row for row in ours if row.lost or row.doubled or not row.carried_through] == []


def test_the_same_faults_make_others_double(fire: Any, rows: list[Any]) -> None:
    assert {row.copier for row in rows} == {fire.OURS, fire.EXAMPLE, fire.QUIX}
    assert all(row.messages > 500 for row in rows)
    assert sum(row.doubled for row in rows if row.copier == fire.EXAMPLE) > 0
