"""The broker has stored the message; its confirm never arrives, and the connection is gone."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.CONFIRM_LOST,
    asked="A message is stored, its confirm is swallowed and the connection reset: is it told as confirmed in the "
    "end, and how often is it there?",
    varies="producer",
    witness={"at_least_once": "duplicate"},
)
def confirm_lost(story: Story) -> None:
    frames = story.frames
    story.declare()
    consumer = story.consumer()
    producer = story.producer(proxied=True)
    producer.send(5)
    for number in story.trials():
        if story.producer_guarantee == "at_most_once":
            # Nothing is confirmed, so there is nothing to swallow: the connection goes right after the send.
            producer.send(1)
            story.wait(lambda: False, 0.3)
            rule = story.armed(frames.cut(of=producer.pid))
            if number == 1 and not rule.evidence:
                story.unsupported("it keeps no connection open after a send: there is none to cut")
            story.fired(rule, "network_cut", producer.name)
            story.did(f"reset {producer.name}'s connections right after a send that waits for no confirm")
            # What it sends before it is back would be lost for another reason.
            story.wait(lambda n=number: _times_back(story, producer.name) >= n, 10.0)  # type: ignore[misc]
            continue
        rule = story.armed(frames.drop_frame("confirm", way="broker", of=producer.pid, then="cut"))
        producer.start(1)
        evidence = story.fired(rule, "confirm_dropped", producer.name)
        story.did(f"swallowed a {evidence['frame']} on its way to {producer.name} and reset the connection")
        story.heal_network()
        producer.finish_sending()
    producer.send(5)
    producer.close()
    consumer.close()
    story.drain()


def _times_back(story: Story, actor: str) -> int:
    return sum(1 for e in story.tail.events if e.op == "event" and e.actor == actor and e.get("kind") == "reconnected")
