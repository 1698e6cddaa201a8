"""A producer sends what it had sent: both copies are there at once, and a copy comes when the first is long done."""

from datetime import timedelta

from brokerkit import once
from brokerkit_conformance.charging import Charging
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_COUNT = 20
_WINDOW = timedelta(hours=1)


@check(
    name="once.sent_twice",
    point="once.sent_twice",
    asked="A producer sends its messages twice before a worker comes and once more when all are done, within the "
    "window that pruning keeps: is every message charged once?",
    varies="store",
    needs_fault=False,
    trials=1,
)
def sent_twice(story: Story) -> None:
    charging = Charging(story)
    producer = story.producer()
    for _ in story.trials():
        producer.send(_COUNT)
        producer.send(_COUNT, first=0)
        held = story.depth()
        if held is not None:
            story.expect("the broker holds both copies", held == 2 * _COUNT, held, witness=True)
        charger = charging.charger(batch=7)
        charging.wait_charged()
        if charging.store.ours:
            forgotten = once.prune(charging.store.url(), _WINDOW)
            story.expect("a window that is not over keeps them all", forgotten == 0, forgotten)
        producer.send(_COUNT, first=0)
        story.did(f"sent {_COUNT} messages three times, the last when all were charged")
        charger.close()
    producer.close()
    charging.drain()
