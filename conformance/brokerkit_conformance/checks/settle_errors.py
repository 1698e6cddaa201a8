"""Nothing fails but the program: settling twice, after close, or in another process is an error by name."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.NONE,
    asked="A delivery is settled twice, after close, and in a forked process: does each raise what says so?",
    needs_fault=False,
    trials=1,
)
def settle_errors(story: Story) -> None:
    if story.at_most_once:
        story.unsupported("at most once, a delivery is acked before it is handed over: there is nothing to settle")
    story.declare()
    producer = story.producer()
    for _ in story.trials():
        producer.send(10)
        consumer = story.consumer(waits=True)
        consumer.process.command("try_settle")
        consumer.wait_closed()
        story.did("acked a delivery twice, one in a forked child, and one after close")
    producer.close()
    asserted = story.count("expect")
    story.expect("the actor got as far as settling", bool(asserted), asserted)
    story.drain()
