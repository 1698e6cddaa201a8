"""A consumer has done the work of a message and dies before it can ack."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.CONSUMER_KILLED_BEFORE_ACK,
    asked="A consumer does the work of a message and is killed at the line before the ack: is the work done again?",
    witness={"at_least_once": "duplicate"},
)
def consumer_killed_before_ack(story: Story) -> None:
    story.declare()
    producer = story.producer()
    for _ in story.trials():
        consumer = story.consumer(stop_at="before_ack", after=3)
        producer.send(12)
        id = consumer.at("before_ack")
        story.kill(consumer, f"after the effect of {id}, before its ack", at="before_ack")
    producer.close()
    story.drain()
