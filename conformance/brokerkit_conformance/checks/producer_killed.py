"""A producer dies in the middle of its stream."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.PRODUCER_KILLED,
    asked="A producer is killed in mid-stream: is every message that was confirmed to it there, and once?",
    varies="producer",
)
def producer_killed(story: Story) -> None:
    story.declare()
    consumer = story.consumer()
    for _ in story.trials():
        producer = story.producer()
        enough = story.random.randint(50, 250)
        told = "info" if story.producer_guarantee == "at_most_once" else "ok"
        producer.start(5000, rate=1000)
        story.wait(lambda p=producer, n=enough, t=told: story.tail.count_by(p.name, "send", t) >= n)  # type: ignore[misc]
        story.kill(producer, f"after {story.tail.count_by(producer.name, 'send', told)} sends had ended")
    consumer.close()
    story.drain()
