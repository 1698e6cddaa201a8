"""A handler works for three leases, with a full buffer behind it, and nothing is handed out again."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.leases import BEHIND, end_of_ack, expect_kept, need_kept_leases, newcomer
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_LEASES = 3


@check(
    point=FailurePoint.LEASE_KEPT,
    asked=f"A handler works for three leases with {BEHIND} deliveries waiting behind it, while another consumer would "
    "take whatever came free: is anything handed out again?",
    needs_fault=False,
    trials=1,
)
def lease_kept(story: Story) -> None:
    lease = need_kept_leases(story)
    story.declare()
    producer = story.producer()
    for number in story.trials():
        slow = story.consumer(stop_at="before_ack", batch=1, prefetch=5 * BEHIND, behind=BEHIND)
        producer.send(BEHIND + 1)
        id = slow.at("before_ack")
        other = newcomer(story)
        story.wait(lambda: False, _LEASES * lease + 0.5)
        slow.release()
        story.wait_effects(number * (BEHIND + 1), timeout=60.0)
        end = end_of_ack(story, slow.name, id)
        story.expect("the slow handler's ack is settled", end == "settled", end)
        expect_kept(story, slow.name, BEHIND + 1)
        story.did(f"{slow.name} worked on {id} for {_LEASES} leases of {lease:g} s, {BEHIND} behind it; its ack: {end}")
        slow.close()
        if other is not None:
            other.close()
    producer.close()
    story.drain()
