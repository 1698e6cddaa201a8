"""An ack is lost on its way, and its consumer cannot come back until its lease or session is over."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.ack_lost import expect_truth, lose_an_ack
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.ACK_LOST_KEPT_AWAY,
    asked="The ack and all that follows it from that consumer is swallowed until its lease or session is over: is the "
    "message handed out again, and what was the ack reported as?",
    witness={"at_least_once": "duplicate"},
    trials=2,
)
def ack_lost_kept_away(story: Story) -> None:
    if story.at_most_once:
        story.unsupported("at most once, the ack goes before the work: losing it is no different from any cut")
    frames = story.frames
    story.declare()
    producer = story.producer()
    for _ in story.trials():
        producer.send(6)
        consumer = story.consumer(proxied=True, prefetch=1, batch=1)
        acked = lose_an_ack(story, consumer, frames, then="swallow")
        other = story.consumer()
        story.wait(lambda name=other.name: bool(story.received_by(name)), 10.0 + 2 * story.bound)  # type: ignore[misc]
        # Healed before the lease is over, the consumer would ask again and be in time.
        again = story.wait(
            lambda ids=acked, name=other.name: any(_did(story, name, id) for id in ids),  # type: ignore[misc]
            5.0 + story.bound,
        )
        story.did(f"{other.name} {'was given' if again else 'was not given'} what {consumer.name} had acked in vain")
        story.heal_network()
        consumer.close()
        other.close()
        expect_truth(story, consumer.name, acked)
    producer.close()
    story.drain()


def _did(story: Story, actor: str, id: str) -> bool:
    return any(e.op == "effect" and e.id == id and e.actor == actor for e in story.tail.events)
