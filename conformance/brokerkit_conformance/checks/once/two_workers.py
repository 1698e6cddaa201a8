"""Two workers have the same message at the same time."""

from brokerkit_conformance.charging import Charging
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_COPIES = 12


@check(
    name="once.two_workers",
    point="once.two_workers",
    asked="Two workers hold copies of one message at the same time, and the second comes to its charge while the "
    "transaction of the first is open: is it charged once?",
    varies="store",
    needs_fault=False,
    trials=2,
)
def two_workers(story: Story) -> None:
    charging = Charging(story)
    producer = story.producer()
    for number in story.trials():
        one = 1000 * number
        options = {"prefetch": 1}
        first = charging.charger(shape="inbox", stop_at="before_commit", after=1, batch=1, options=options)
        producer.send(1, first=one)
        id = first.at("before_commit")
        for copy in range(_COPIES):
            # Each with another key, so that some go to other partitions than the first worker's, where there are such.
            producer.send(1, first=one, keys=7 + copy)
        second = charging.charger(shape="inbox")
        both = charging.wait_received(second, id, 30.0 + story.bound)
        story.expect("two workers have the message at the same time", both, id, witness=True)
        story.wait(lambda: False, 0.5)  # the second comes to the inbox
        first.release()
        story.did(f"{first.name} stood before its commit with {id}, and {second.name} had a copy of it")
        charging.wait_charged()
        first.close()
        second.close()
    producer.close()
    charging.drain()
