"""The broker's process is killed under load and started again on the same data."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.BROKER_KILLED,
    asked="The broker is killed with SIGKILL under load and restarted on its data: is anything lost or doubled, and "
    "do producer and consumer go on by themselves?",
    varies="both",
    exclusive=True,
    trials=1,
)
def broker_killed(story: Story) -> None:
    story.need_broker_process()
    story.declare()
    producer = story.producer()
    producer.send(100)
    # Slower than the producer: something has to be stored, and not yet worked on, when the broker dies.
    consumer = story.consumer(work=0.01)
    producer.start(100_000, rate=120)
    story.wait_effects(50)
    for _ in story.trials():
        story.break_broker()
        after = len(story.effects())
        recovered = story.wait_effects(after + 30, timeout=60.0)
        story.expect("producer and consumer go on by themselves", recovered, f"{len(story.effects()) - after} effects")
    producer.stop()
    story.wait(lambda: not story.missing(), 20.0)
    consumer.close()
    story.drain()
