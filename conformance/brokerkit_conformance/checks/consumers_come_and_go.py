"""Consumers join, leave in order and are killed while messages flow."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.CONSUMERS_COME_AND_GO,
    asked="Under load consumers join, leave in order, and are killed: is every message worked on?",
    witness={"at_least_once": "duplicate"},
)
def consumers_come_and_go(story: Story) -> None:
    story.declare()
    producer = story.producer()
    stays = story.consumer(prefetch=50, work=0.002)
    producer.start(100_000, rate=120, keys=16)
    for _ in story.trials():
        leaves = story.start_consumer(prefetch=50, work=0.002)
        killed = story.start_consumer(prefetch=50, work=0.002)
        leaves.ready()
        killed.ready()
        before = len(story.effects())
        story.wait(lambda n=before: len(story.effects()) > n + story.random.randint(20, 60), 20.0)  # type: ignore[misc]
        leaves.close()
        story.did(f"{leaves.name} left in order")
        story.kill(killed, "while it worked")
    producer.stop()
    story.wait(lambda: not story.missing("work"), 10.0)
    stays.close()
    story.drain()
