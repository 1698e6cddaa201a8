"""Nothing fails: what arrives is what was sent, to the last byte."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.NONE,
    asked="Bodies from empty to the largest, every kind of header, unicode, and identical bodies: does each arrive "
    "once, whole?",
    varies="both",
    needs_fault=False,
    trials=1,
)
def bodies_and_headers(story: Story) -> None:
    story.declare()
    consumer = story.consumer()
    producer = story.producer()
    for _ in story.trials():
        producer.send(0, kind="samples", largest=story.properties.max_body_bytes)
        story.did("sent bodies of every size, headers of every kind, and three messages that differ only in their id")
    producer.close()
    sent = story.sent()
    story.wait_effects(len(sent))
    consumer.close()
    story.drain()
