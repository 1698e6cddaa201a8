"""Consumers are asked to end, in order, under load."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.CLEAN_SHUTDOWN,
    asked="A consumer gets SIGTERM under load, and a successor goes on: is nothing lost, and nothing done twice?",
)
def clean_shutdown(story: Story) -> None:
    story.declare()
    producer = story.producer()
    producer.start(100_000, rate=200)
    for _ in story.trials():
        consumer = story.consumer(work=0.002)
        enough = story.random.randint(20, 80)
        story.wait(lambda n=consumer.name, k=enough: len(story.received_by(n)) >= k, 40.0)  # type: ignore[misc]
        story.terminate(consumer)
        story.did(f"SIGTERM {consumer.name} after {enough} messages: it ended with {consumer.process.status}")
    producer.stop()
    story.drain()
