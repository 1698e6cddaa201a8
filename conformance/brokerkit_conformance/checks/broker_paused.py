"""The broker's process stands still for longer than the heartbeat, and goes on."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.BROKER_PAUSED,
    asked="The broker stands still for longer than any heartbeat or session, and goes on: is anything lost or "
    "doubled, and do producer and consumer go on by themselves?",
    varies="both",
    exclusive=True,
    trials=1,
)
def broker_paused(story: Story) -> None:
    story.need_broker_process()
    story.declare()
    consumer = story.consumer(work=0.002)
    producer = story.producer()
    producer.start(100_000, rate=100)
    story.wait_effects(50)
    for _ in story.trials():
        for node in range(story.target.asked.nodes):
            story.broker("pause", node)
        story.wait(lambda: False, min(story.bound * 1.2 + 1.0, 20.0))
        for node in range(story.target.asked.nodes):
            story.broker("resume", node)
        after = len(story.effects())
        recovered = story.wait_effects(after + 30, timeout=60.0)
        story.expect("producer and consumer go on by themselves", recovered, f"{len(story.effects()) - after} effects")
    producer.stop()
    story.wait(lambda: not story.missing("work"), 10.0)
    consumer.close()
    story.drain()
