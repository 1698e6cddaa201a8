"""A worker dies, is stopped, or hangs: what it held is handed out again within the bound that the plugin states."""

from __future__ import annotations

import time
from typing import Any

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.leases import need_held
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import ConsumerActor, Story

_LATE = 30.0
"""Seconds beyond the bound in which a redelivery that comes late is still waited for."""


@check(
    point=FailurePoint.LEASE_RELEASED,
    asked="A worker is killed, another is stopped, and, where leases are renewed, a third hangs in its handler for "
    "longer than the stated maximum: is what each of them held handed out again within the bound that is stated?",
    trials=1,
)
def lease_released(story: Story) -> None:
    renewed = story.properties.lease == "renewable"
    need_held(story)
    lease = story.shorten_leases() if renewed else 0.0
    story.declare()
    producer = story.producer()
    for _ in story.trials():
        for strike in (_kill, _freeze):
            worker = story.consumer(stop_at="before_processing")
            producer.send(5)
            worker.at("before_processing")
            strike(story, worker)
            _expect_back(story, worker, time.monotonic_ns(), story.bound)
        if renewed:
            _hang(story, producer.send, lease)
    producer.close()
    story.drain()


def _kill(story: Story, worker: ConsumerActor) -> None:
    story.kill(worker, "with five in hand", at="before_processing")


def _freeze(story: Story, worker: ConsumerActor) -> None:
    story.freeze(worker, "with five in hand", at="before_processing")


def _hang(story: Story, send: Any, lease: float) -> None:
    """It lives, and its handler does not come back; its leases are renewed for the time of one."""
    worker = story.consumer(stop_at="before_processing", options={"max_lease": lease})
    send(5)
    worker.at("before_processing")
    hung = time.monotonic_ns()
    story.fault("hang", worker.name, lambda: {"state": worker.process.state(), "max_lease": lease})
    _expect_back(story, worker, hung, lease + story.bound)


def _expect_back(story: Story, worker: ConsumerActor, since: int, bound: float) -> None:
    """Counted from when there is somebody to hand it out to."""
    held = {event.id for event in story.received_by(worker.name)}
    other = story.consumer()
    since = max(since, time.monotonic_ns())
    back: dict[str | None, int] = {}

    def all_back() -> bool:
        back.update({event.id: event.t for event in story.received_by(other.name)})
        return held <= back.keys()

    story.wait(all_back, bound + _LATE)
    latest = max((back.get(id, time.monotonic_ns()) for id in held), default=since)
    seconds = max(0.0, (latest - since) / 1e9)
    came = len(held & back.keys())
    story.expect(
        f"what {worker.name} held is back within {bound:g} s", held <= back.keys() and seconds <= bound,
        f"{came} of {len(held)} after {seconds:.1f} s",
    )  # fmt: skip
    story.did(f"{other.name} got {came} of the {len(held)} that {worker.name} held, the last after {seconds:.1f} s")
    worker.process.end()
    other.close()
