"""SQS hands a message out, and hands it out again although it was deleted and nothing failed."""

from __future__ import annotations

from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.faults.proxy import Changed
from brokerkit_conformance.story import Story

from brokerkit.driver import Frame
from brokerkit_sqs.checks import ENDPOINT


@check(
    point="hazard_handed_out_twice",
    asked="What one consumer got and deleted is handed to another, as by a server that had not heard of the delete: "
    "is it recognised as the same message, and is what its ack ended as the truth?",
    witness={"at_least_once": "duplicate"},
    trials=2,
)
def hazard_handed_out_twice(story: Story) -> None:
    frames = story.frames
    story.declare()
    producer = story.producer()
    for number in story.trials():
        first = story.consumer(proxied=True)
        kept: list[bytes] = []

        def keep(frame: Frame, kept: list[bytes] = kept) -> Changed | None:
            kept.append(frame.raw)
            return None

        watching = story.armed(frames.change_frame("deliver", way="broker", of=first.pid, change=keep))
        producer.send(1)
        story.wait_effects(number)
        story.wait(lambda n=number: story.depth() == 0, 20.0)  # type: ignore[misc]
        first.close()
        frames.heal(watching)
        second = story.consumer(proxied=True)
        again = Changed(back=kept[0])
        rule = story.armed(frames.change_frame("fetch", way="client", of=second.pid, change=lambda _, it=again: it))  # type: ignore[misc]
        story.fired(rule, "handed_out_again", ENDPOINT)
        story.did(f"answered a poll of {second.name} with what {first.name} had got and deleted")
        story.wait(lambda name=second.name: bool(story.received_by(name)), 10.0)  # type: ignore[misc]
        story.wait(lambda: False, 1.0)
        story.heal_network()
        second.close()
    producer.close()
    story.drain()
