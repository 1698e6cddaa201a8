"""An ack is lost on its way together with the connection, and its consumer comes back at once."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.ack_lost import expect_truth, lose_an_ack
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.ACK_LOST_BACK_AT_ONCE,
    asked="The ack is swallowed and the connection reset, and the consumer comes back at once: is the broker asked "
    "again, or is the message handed out again?",
    witness={"at_least_once": "duplicate"},
    # Where the broker answers acks, it is asked again, and nothing needs to come again.
    witness_if=lambda properties: not properties.answers_acks,
)
def ack_lost_back_at_once(story: Story) -> None:
    if story.at_most_once:
        story.unsupported("at most once, the ack goes before the work: losing it is no different from any cut")
    frames = story.frames
    story.declare()
    producer = story.producer()
    for _ in story.trials():
        producer.send(6)
        consumer = story.consumer(proxied=True, prefetch=1, batch=1)
        acked = lose_an_ack(story, consumer, frames, then="cut")
        story.wait(lambda: not story.missing("work"), 10.0 + story.bound)
        consumer.close()
        expect_truth(story, consumer.name, acked)
    producer.close()
    story.drain()
