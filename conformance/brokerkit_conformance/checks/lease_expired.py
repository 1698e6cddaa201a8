"""A handler works on although its lease is over, because nobody renews it or nobody can."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.leases import end_of_ack, need_leases, told_of_lost_leases
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_LOST = ("lost", "LeaseLost")
_TOLD_WITHIN = 2.0
"""Seconds in which a handler is told that the broker took its message away."""


@check(
    point=FailurePoint.LEASE_EXPIRED,
    asked="A handler works for longer than its lease, which is not renewed: is its message handed out again meanwhile, "
    "and what is its late ack reported as?",
    witness={"at_least_once": "duplicate"},
    needs_fault=False,
    trials=2,
)
def lease_expired(story: Story) -> None:
    if story.properties.lease == "polling":
        story.unsupported("its lease lasts while its process polls, which only a process that stands still does not")
    lease = need_leases(story)
    story.declare()
    producer = story.producer()
    for _ in story.trials():
        slow = story.consumer(stop_at="before_ack", prefetch=1, batch=1, options={"max_lease": 0.0})
        producer.send(1)
        id = slow.at("before_ack")
        other = story.consumer()
        taken = story.wait_effect_by(other.name, id, timeout=5.0 + 3 * lease)
        if not taken:
            story.note(
                "nothing was handed out again on an idle queue: another message is sent, to see whether it wakes"
            )
            producer.send(1)
            taken = story.wait_effect_by(other.name, id, timeout=25.0 + 2 * lease)
        story.expect("it is handed out again while its handler works", taken, id, witness=True)
        if story.properties.lease == "fixed":
            _expect_told(story, slow.name, other.name, id)
        slow.release()
        end = end_of_ack(story, slow.name, id)
        story.expect(f"a late ack ends as {' or '.join(_LOST)}", end in _LOST, end)
        story.did(f"{slow.name} held {id} beyond its lease of {lease:g} s; {other.name} got it; the late ack: {end}")
        other.close()
        slow.close()
    producer.close()
    story.drain()


def _expect_told(story: Story, slow: str, other: str, id: str) -> None:
    """The broker decides when such a lease is over: the one who had it is told as soon as another has it."""
    again = [event for event in story.received_by(other) if event.id == id]
    story.wait(lambda: bool(told_of_lost_leases(story, slow)), _TOLD_WITHIN)
    told = told_of_lost_leases(story, slow)
    late = (told[0].t - again[0].t) / 1e9 if told and again else None
    what = f"the handler is told within {_TOLD_WITHIN:g} s of the broker's decision"
    story.expect(what, late is not None and late <= _TOLD_WITHIN, "never" if late is None else f"{late:.2f} s")
