"""Handlers are quick, and what waits in the buffer for its turn waits for longer than a lease."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.leases import expect_kept, need_kept_leases, newcomer
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_MESSAGES = 12
_A_LEASE = 4
"""Messages that are handled in the time of one lease."""


@check(
    point=FailurePoint.BUFFERED_LEASE,
    asked="Each message is handled well within its lease, and the last one waits in its consumer's buffer for almost "
    "three, while another consumer would take whatever came free: is anything handed out again?",
    needs_fault=False,
    trials=1,
)
def buffered_lease(story: Story) -> None:
    lease = need_kept_leases(story)
    story.declare()
    producer = story.producer()
    for number in story.trials():
        busy = story.consumer(batch=1, prefetch=5 * _MESSAGES, behind=_MESSAGES - 1, work=lease / _A_LEASE)
        producer.send(_MESSAGES)
        story.wait(lambda name=busy.name: bool(story.tail.by(name, "held")), 30.0)  # type: ignore[misc]
        other = newcomer(story)
        story.wait_effects(number * _MESSAGES, timeout=30.0 + 4 * lease)
        expect_kept(story, busy.name, _MESSAGES)
        story.did(f"{busy.name} handled {_MESSAGES}, {_A_LEASE} in a lease of {lease:g} s")
        busy.close()
        if other is not None:
            other.close()
    producer.close()
    story.drain()
