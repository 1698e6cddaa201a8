"""Consumers join, leave in order and are killed while messages flow."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.actors.supervise import ActorFailed
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import ConsumerActor, Story


@check(
    point=FailurePoint.CONSUMERS_COME_AND_GO,
    asked="Under load consumers join, leave in order, and are killed: is every message worked on?",
)
def consumers_come_and_go(story: Story) -> None:
    story.declare()
    producer = story.producer()
    stays = story.consumer(prefetch=50, work=0.002)
    producer.start(100_000, rate=120, keys=16)
    for _ in story.trials():
        leaves = story.start_consumer(prefetch=50, work=0.002)
        killed = story.start_consumer(prefetch=50, work=0.002, stop_at="before_ack", after=story.random.randint(2, 9))
        leaves.ready()
        killed.ready()
        _kill_at_work(story, killed)
        before = len(story.effects())
        story.wait_effects(before + story.random.randint(20, 60), timeout=20.0)
        leaves.close()
        story.did(f"{leaves.name} left in order")
    producer.stop()
    story.wait(lambda: not story.missing(), 5.0)
    stays.close()
    story.drain()


def _kill_at_work(story: Story, consumer: ConsumerActor) -> None:
    """At the line before an ack, or wherever it is when it was given nothing to work on."""
    try:
        id = consumer.at("before_ack", timeout=8.0 + 2 * story.bound)
    except ActorFailed:
        story.kill(consumer, "which had nothing to work on")
        return
    story.kill(consumer, f"after the effect of {id}, before its ack", at="before_ack")
