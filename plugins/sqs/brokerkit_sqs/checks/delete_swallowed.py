"""SQS says that it deleted a message, and hands it out again after its lease."""

from __future__ import annotations

from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.faults.proxy import Changed
from brokerkit_conformance.story import Story

from brokerkit_sqs.checks import ENDPOINT
from brokerkit_sqs.checks.spoil import all_done


@check(
    point="hazard_delete_swallowed",
    asked="A delete is answered and not carried out: does the message come again after its lease, with the same id?",
    witness={"at_least_once": "duplicate"},
    trials=2,
)
def hazard_delete_swallowed(story: Story) -> None:
    if story.at_most_once:
        story.unsupported("at most once, what comes again is dropped: nothing shows whether a delete was carried out")
    frames = story.frames
    story.declare()
    producer = story.producer()
    for _ in story.trials():
        consumer = story.consumer(proxied=True)
        rule = story.armed(
            frames.change_frame(
                "ack", way="client", of=consumer.pid, change=lambda frame: Changed(back=all_done(frame))
            )
        )
        producer.send(1)
        evidence = story.fired(rule, "delete_swallowed", ENDPOINT)
        story.did(f"answered a {evidence['frame']} of {consumer.name} and kept it from the endpoint")
        story.wait(lambda name=consumer.name: len(story.received_by(name)) > 1, 10.0 + 2 * story.bound)  # type: ignore[misc]
        story.wait(lambda: story.depth() == 0, 10.0)
        story.heal_network()
        consumer.close()
    producer.close()
    story.drain()
