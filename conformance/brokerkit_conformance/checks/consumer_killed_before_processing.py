"""A consumer has been handed a message and dies before it does anything with it."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.CONSUMER_KILLED_BEFORE_PROCESSING,
    asked="A consumer is handed a message and killed before it works on it: is the message handed out again?",
    witness={"at_most_once": "loss"},
)
def consumer_killed_before_processing(story: Story) -> None:
    story.declare()
    producer = story.producer()
    for _ in story.trials():
        consumer = story.consumer(stop_at="before_processing", after=3)
        producer.send(12)
        id = consumer.at("before_processing")
        story.kill(consumer, f"before it worked on {id}", at="before_processing")
    producer.close()
    story.drain()
