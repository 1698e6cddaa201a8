"""Whoever holds an idempotency key outlasts its lease, and comes back when another has finished."""

from brokerkit_conformance.calling import Calling
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    name="once.key_holder_frozen",
    point="once.key_holder_frozen",
    asked="A worker is frozen after the service that it called has charged and before its key is done; another takes "
    "the key over and finishes. Is the first told that the key is not its any more, and is every message charged once?",
    varies="store",
    keys=True,
    trials=1,
)
def key_holder_frozen(story: Story) -> None:
    calling = Calling(story)
    producer = story.producer()
    for _ in story.trials():
        first = calling.charger(stop_at="after_effect", options={"prefetch": 1})
        producer.send(1)
        id = first.at("after_effect")
        story.freeze(first, f"after the service charged for {id}", at="after_effect")
        second = calling.charger()
        taken = calling.call_of(second, id, 60.0 + 5 * story.bound)
        story.expect("another finishes meanwhile", taken is not None and taken.type == "ok", id, witness=True)
        story.thaw(first)
        first.release()
        ended = calling.call_of(first, id, 60.0)
        said = ended and (ended.get("cause") or ended.type)
        story.expect("a holder whose lease was over is told so, and stores nothing", said == "KeyLost", said)
        story.did(f"{second.name} took the key of {id} over; {first.name} was told {said}")
        first.process.command("stop")
        first.process.wait_end(60.0)
        second.close()
    producer.close()
    calling.drain()
