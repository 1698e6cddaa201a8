"""A worker that remembers in its own memory what it has charged is restarted."""

from dataclasses import replace

from brokerkit.guarantees import Likelihood
from brokerkit_conformance.charging import Charging
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    name="once.dedup_in_memory",
    point="once.dedup_in_memory",
    asked="A worker keeps the ids that it has charged in its memory, and is killed between its commit and its acks: "
    "are they charged again?",
    varies="store",
    trials=2,
    of_store=lambda claim: replace(
        claim, duplicate=Likelihood.EXPECTED, condition="what a process remembers is gone with it: the mistake, shown"
    ),
)
def dedup_in_memory(story: Story) -> None:
    charging = Charging(story)
    producer = story.producer()
    for _ in story.trials():
        charger = charging.charger(shape="forgetful", stop_at="after_commit", after=3)
        producer.send(12)
        id = charger.at("after_commit")
        story.kill(charger, f"after the commit of {id}, before its ack", at="after_commit")
    producer.close()
    charging.drain(shape="forgetful")
