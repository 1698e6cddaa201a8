"""A worker comes with a key that was used before, and with another body."""

from brokerkit_conformance.calling import Calling
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_POINTS = ("after_finish", "after_effect")


@check(
    name="once.key_with_another_body",
    point="once.key_with_another_body",
    asked="A worker is killed after the service has charged, and the next one makes another body for the same key, "
    "once while the key is in progress and once when it is done: is it refused, and is nothing else sent?",
    varies="store",
    keys=True,
    trials=2,
)
def key_with_another_body(story: Story) -> None:
    calling = Calling(story)
    producer = story.producer()
    for number in story.trials():
        point = _POINTS[number % 2]
        first = calling.charger(shape="held", stop_at=point, options={"prefetch": 1})
        producer.send(1)
        id = first.at(point)
        story.kill(first, f"after the service charged for {id}", at=point)
        second = calling.charger(shape="held", note="another")
        ended = calling.call_of(second, id, 60.0 + 5 * story.bound)
        said = ended and (ended.get("cause") or ended.type)
        story.expect("the same key with another body is refused", said == "KeyReused", said)
        bodies = {call.body for call in calling.books.calls_of(id)}
        story.expect("the service gets no other body", len(bodies) == 1, len(bodies))
        story.did(f"{second.name} came with the key of {id} and another body: {said}")
        second.close()
    producer.close()
    calling.drain(shape="held")
