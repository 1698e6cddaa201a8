"""Nothing fails: every subscription of a topic gets every message, and no other topic's."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.NONE,
    asked="Two subscriptions of one topic, and another topic beside it: does each get all of its own and nothing else?",
    subscriptions=("left", "right"),
    needs_fault=False,
    trials=1,
)
def fan_out(story: Story) -> None:
    story.declare(*story.subscriptions)
    other = f"{story.topic}-b"
    story.declare("left", topic=other)
    consumers = [story.start_consumer(subscription=name) for name in story.subscriptions]
    for consumer in consumers:
        consumer.ready()
    producer = story.producer()
    for _ in story.trials():
        producer.send(30)
    producer.close()
    sent = len(story.sent())
    for name in story.subscriptions:
        story.wait_effects(sent, name)
    story.did(f"sent {sent} messages to a topic with two subscriptions, none to the topic beside it")
    left = story.depth("left", other)
    if left is not None:
        story.expect("the topic beside it stays empty", left == 0, left)
    for consumer in consumers:
        consumer.close()
    story.drain()
