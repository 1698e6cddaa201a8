"""A consumer has been handed a message and dies before it does anything with it."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_WORKED_ON = 3


@check(
    point=FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING,
    asked="A consumer is handed messages, works on the last ones first, and is killed: are the others handed out "
    "again?",
    witness={"at_most_once": "loss"},
)
def consumer_killed_before_processing(story: Story) -> None:
    story.declare()
    producer = story.producer()
    for _ in story.trials():
        consumer = story.consumer(stop_at="before_processing", after=_WORKED_ON, gather=8)
        producer.send(12)
        id = consumer.at("before_processing")
        # Long enough for the acks of the last ones to reach the broker; where it answers them, no longer.
        story.wait(lambda name=consumer.name: _answered(story, name) >= _WORKED_ON, 2.0)  # type: ignore[misc]
        story.kill(consumer, f"before it worked on {id}", at="before_processing")
    producer.close()
    story.drain()


def _answered(story: Story, actor: str) -> int:
    return sum(1 for e in story.tail.events if e.op == "ack" and e.type == "ok" and e.actor == actor)
