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
        producer.start(100_000, rate=3000)
        story.wait(lambda p=producer, n=enough, t=told: _sent_by(story, p.name, t) >= n)  # type: ignore[misc]
        story.kill(producer, f"after {_sent_by(story, producer.name, told)} sends had ended")
    consumer.close()
    story.drain()


def _sent_by(story: Story, actor: str, type: str) -> int:
    return sum(1 for e in story.tail.events if e.op == "send" and e.type == type and e.actor == actor)
