"""A worker has written its charges and dies before their transaction is committed."""

from brokerkit_conformance.charging import Charging
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_SHAPES = ("transactions", "inbox")


@check(
    name="once.killed_before_commit",
    point="once.killed_before_commit",
    asked="A worker is killed after it wrote its charges and before their transaction is committed, in the library's "
    "transaction and in one of its own with the inbox in it: is every message charged once?",
    varies="store",
    trials=2,
)
def killed_before_commit(story: Story) -> None:
    charging = Charging(story)
    producer = story.producer()
    for number in story.trials():
        charger = charging.charger(shape=_SHAPES[number % 2], stop_at="before_commit", after=3)
        producer.send(12)
        id = charger.at("before_commit")
        story.kill(charger, f"after the charge of {id}, before its commit", at="before_commit")
    producer.close()
    charging.drain()
