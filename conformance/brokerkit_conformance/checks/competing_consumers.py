"""Nothing fails: consumers of one subscription share the work, and none does another's again."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.NONE,
    asked="Four consumers of one subscription: is each message worked on once, and does more than one consumer work?",
    needs_fault=False,
    trials=1,
)
def competing_consumers(story: Story) -> None:
    story.declare()
    consumers = [story.start_consumer(prefetch=10, batch=5, work=0.01) for _ in range(4)]
    for consumer in consumers:
        consumer.ready()
    # Joining moves work between consumers, which is another failure point's business.
    story.wait_settled_membership()
    producer = story.producer()
    for _ in story.trials():
        producer.send(240, keys=24, rate=400)
    producer.close()
    story.wait_effects(240 * story.trials_done)
    workers = {event.actor for event in story.tail.events if event.op == "effect"}
    story.did(f"four consumers took {240 * story.trials_done} messages; {len(workers)} of them had some")
    story.expect("more than one consumer worked", len(workers) > 1, len(workers))
    for consumer in consumers:
        consumer.close()
    story.drain()
