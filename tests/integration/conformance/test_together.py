"""One fault for several cells: done once, by the last to arrive, with the same evidence for all."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from brokerkit_conformance.faults.together import Together


def test_the_action_runs_once_and_everybody_gets_its_result() -> None:
    together = Together(3)
    ran: list[int] = []

    def act() -> int:
        ran.append(1)
        return 42

    with ThreadPoolExecutor(3) as pool:
        results = [future.result(10) for future in [pool.submit(together.do, act) for _ in range(3)]]
    assert results == [42, 42, 42]
    assert len(ran) == 1


def test_rounds_follow_each_other() -> None:
    together = Together(2)
    order: list[str] = []

    def party() -> None:
        for name in "abc":
            together.do(lambda name=name: order.append(name))  # type: ignore[misc]

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(party) for _ in range(2)]:
            future.result(10)
    assert order == ["a", "b", "c"]


def test_one_that_leaves_is_not_waited_for() -> None:
    together = Together(2)
    done = threading.Event()
    waiting = threading.Thread(target=lambda: together.do(done.set))
    waiting.start()
    together.leave()
    waiting.join(10)
    assert done.is_set()


def test_what_it_raises_is_raised_in_all() -> None:
    together = Together(2)

    def fail() -> None:
        raise ConnectionError("the broker did not come back")

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(together.do, fail) for _ in range(2)]
        for future in futures:
            with pytest.raises(ConnectionError, match="did not come back"):
                future.result(10)
