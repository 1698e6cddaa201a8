"""SQS hands messages out in another order than they were sent in."""

from __future__ import annotations

from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.faults.proxy import Changed
from brokerkit_conformance.story import Story

from brokerkit.driver import Frame
from brokerkit_sqs.checks import ENDPOINT
from brokerkit_sqs.checks.spoil import reversed_messages


@check(
    point="hazard_reordered",
    asked="Every answer to a poll has its messages the other way round: is each still there once, and whole?",
    witness={"at_least_once": "reorder"},
    trials=1,
)
def hazard_reordered(story: Story) -> None:
    frames = story.frames
    story.declare()
    producer = story.producer()
    for _ in story.trials():
        producer.send(60, keys=2)
        consumer = story.start_consumer(proxied=True)
        rule = story.armed(
            frames.change_frame("deliver", way="broker", of=consumer.pid, change=_turned, times=1_000_000)
        )
        consumer.ready()
        evidence = story.fired(rule, "reordered", ENDPOINT)
        story.did(f"turned the messages of each {evidence['frame']} of {consumer.name} round")
        story.wait_effects(60)
        story.heal_network()
        consumer.close()
    producer.close()
    story.drain()


def _turned(frame: Frame) -> Changed | None:
    raw = reversed_messages(frame)
    return None if raw is None else Changed(raw)
