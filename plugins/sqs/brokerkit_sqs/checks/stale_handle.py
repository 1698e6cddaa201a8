"""SQS accepts an old receipt handle in silence: whoever lost its lease learns nothing from the answer."""

from __future__ import annotations

from brokerkit_conformance.checks.leases import end_of_ack
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.faults.proxy import Changed
from brokerkit_conformance.story import Story

from brokerkit_sqs.checks.spoil import all_done


@check(
    point="hazard_stale_handle_accepted",
    asked="A consumer stands still past its lease, another takes over, and every delete of the first one is answered "
    "as done: is its late ack told as lost all the same, and is no delete sent that could take the other's message?",
    witness={"at_least_once": "duplicate"},
    trials=2,
)
def hazard_stale_handle_accepted(story: Story) -> None:
    if story.at_most_once:
        story.unsupported("at most once, a delivery is acked before it is handed over: there is no late ack")
    frames = story.frames
    story.declare()
    producer = story.producer()
    for _ in story.trials():
        frozen = story.consumer(proxied=True, stop_at="before_ack", prefetch=1, batch=1)
        deletes = story.armed(
            frames.change_frame(
                "ack", way="client", of=frozen.pid, change=lambda frame: Changed(back=all_done(frame)), times=1_000_000
            )
        )
        producer.send(1)
        id = frozen.at("before_ack")
        story.freeze(frozen, f"after the effect of {id}, before its ack", at="before_ack")
        other = story.consumer()
        taken = story.wait_effect_by(other.name, id, timeout=20.0 + 3 * story.bound)
        story.expect("another consumer takes over what the frozen one held", taken, id, witness=True)
        story.thaw(frozen)
        frozen.release()
        told = end_of_ack(story, frozen.name, id)
        story.expect("a late ack ends as lost, or unknown, whatever the endpoint would say", told in _HONEST, told)
        story.expect("no delete is sent with a handle whose lease is over", not deletes.evidence, len(deletes.evidence))
        story.heal_network()
        frozen.process.command("stop")
        frozen.wait_closed()
        other.close()
    producer.close()
    story.drain()


_HONEST = ("lost", "unknown", "LeaseLost", "Closed")
