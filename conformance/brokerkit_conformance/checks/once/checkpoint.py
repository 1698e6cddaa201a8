"""Workers that keep their place in a partition beside the charges die and freeze on both sides of the commit."""

from brokerkit_conformance.charging import Charging
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_OPTIONS = {"checkpoint": True}


@check(
    name="once.checkpoint",
    point="once.checkpoint",
    asked="The place in each partition is committed with the charges. A worker is killed before that commit, another "
    "after it and before the ack, a third is frozen there while a successor goes on: is every message charged once?",
    varies="store",
    trials=3,
)
def checkpoint(story: Story) -> None:
    if story.properties.order != "per_partition":
        story.unsupported("only a partition that one consumer reads in order has a place to keep")
    charging = Charging(story)
    producer = story.producer()
    for number in story.trials():
        point = "before_commit" if number % 3 == 1 else "after_commit"
        charger = charging.charger(stop_at=point, after=3, options=_OPTIONS)
        producer.send(12, keys=8)
        id = charger.at(point)
        if number % 3:
            story.kill(charger, f"at {id}, {point.replace('_', ' ')}", at=point)
            continue
        story.freeze(charger, f"after the commit of {id}, before its ack", at=point)
        successor = charging.charger(options=_OPTIONS)
        producer.send(12, keys=8)
        charging.wait_charged(timeout=30.0 + 3 * story.bound)
        story.thaw(charger)
        charger.release()
        charging.wait_charged()
        charger.process.command("stop")
        charger.process.wait_end(60.0)
        successor.close()
    producer.send(24, keys=8)  # behind what was in hand then, so that the broker's own place passes it
    producer.close()
    charging.drain(options=_OPTIONS)
