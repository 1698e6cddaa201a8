"""SQS refuses calls for a while, because there were too many or because it is not well."""

from __future__ import annotations

from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.faults.proxy import Changed
from brokerkit_conformance.story import Story

from brokerkit_sqs.checks import ENDPOINT
from brokerkit_sqs.checks.spoil import refused

_REFUSALS = (refused("RequestThrottled", "400 Bad Request"), refused("ServiceUnavailable", "503 Service Unavailable"))


@check(
    point="hazard_throttled",
    asked="Sends, polls and deletes are refused for a while, as throttled and as unavailable: does everything go on by "
    "itself, and is nothing lost?",
    varies="both",
    trials=2,
)
def hazard_throttled(story: Story) -> None:
    frames = story.frames
    story.declare()
    producer = story.producer(proxied=True)
    consumer = story.consumer(proxied=True)
    for number in story.trials():
        refusal = Changed(back=_REFUSALS[number % 2])
        rules = {
            kind: story.armed(
                frames.change_frame(kind, way="client", of=pid, change=lambda _, it=refusal: it, times=3)  # type: ignore[misc]
            )
            for kind, pid in (("publish", producer.pid), ("fetch", consumer.pid), ("ack", consumer.pid))
        }
        producer.send(60, rate=100)
        for kind, rule in rules.items():
            evidence = story.fired(rule, f"{kind}_throttled", ENDPOINT)
            story.did(f"refused a {evidence['frame']} three times over")
        story.wait(lambda: not story.missing(), 5.0 if story.producer_guarantee == "at_most_once" else 20.0)
        story.heal_network()
        producer.send(10)
    producer.close()
    consumer.close()
    story.drain()
