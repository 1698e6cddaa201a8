"""What the two cases of a lost ack share."""

from __future__ import annotations

from typing import Literal

from brokerkit_conformance.faults.proxy import Proxy
from brokerkit_conformance.story import ConsumerActor, Story

_ACKS = ("ack", "commit")


def lose_an_ack(story: Story, consumer: ConsumerActor, frames: Proxy, then: Literal["cut", "swallow"]) -> list[str]:
    """Swallows the consumer's next ack; returns the ids that it may have carried, the latest effects."""
    rule = story.armed(frames.drop_frame(*_ACKS, way="client", of=consumer.pid, then=then))
    evidence = story.fired(rule, "ack_dropped", consumer.name, timeout=30.0)
    at = evidence["at"]
    what = "and reset the connection" if then == "cut" else "and all that follows"
    story.did(f"swallowed a {evidence['frame']} of {consumer.name} {what}")
    story.tail.refresh()
    return [
        event.id
        for event in story.tail.events
        if event.op == "ack" and event.type == "invoke" and event.actor == consumer.name and event.t <= at and event.id
    ]


def expect_truth(story: Story, actor: str, acked: list[str]) -> None:
    """An ack reported as settled is not followed by another effect of the same message."""
    story.tail.refresh()
    for id in acked:
        settled = [
            e.t for e in story.tail.events
            if e.op == "ack" and e.type == "ok" and e.id == id and e.actor == actor and e.get("end") == "settled"
        ]  # fmt: skip
        again = [e for e in story.tail.events if e.op == "receive" and e.id == id and settled and e.t > settled[0]]
        if settled:
            story.expect(
                "an ack reported as settled is final", not again, f"{id}: received {len(again)} times after it"
            )
