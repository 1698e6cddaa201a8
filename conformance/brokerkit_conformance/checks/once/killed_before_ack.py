"""A worker has committed its charges and dies before it can ack."""

from brokerkit_conformance.charging import Charging
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_SHAPES = ("transactions", "inbox")


@check(
    name="once.killed_before_ack",
    point="once.killed_before_ack",
    asked="A worker is killed after its charges are committed and before it acks, in the library's transaction and in "
    "one of its own with the inbox in it: is every message charged once?",
    varies="store",
    trials=2,
)
def killed_before_ack(story: Story) -> None:
    charging = Charging(story)
    producer = story.producer()
    for number in story.trials():
        charger = charging.charger(shape=_SHAPES[number % 2], stop_at="after_commit", after=3)
        producer.send(12)
        id = charger.at("after_commit")
        story.expect("its charges are in the books", id in charging.books.charged(), id, witness=True)
        story.kill(charger, f"after the commit of {id}, before its ack", at="after_commit")
    producer.close()
    charging.drain()
