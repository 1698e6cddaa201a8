"""Whoever holds an idempotency key dies after its effect in another service."""

from brokerkit_conformance.calling import Calling
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_POINTS = ("after_finish", "after_effect")


@check(
    name="once.key_holder_killed",
    point="once.key_holder_killed",
    asked="A worker is killed after the service that it called has charged, once before its key is done and once "
    "before its ack: does the call come again with the same key and bytes, and is every message charged once?",
    varies="store",
    keys=True,
    trials=2,
)
def key_holder_killed(story: Story) -> None:
    calling = Calling(story)
    producer = story.producer()
    unfinished = []
    for number in story.trials():
        point = _POINTS[number % 2]
        caller = calling.charger(stop_at=point, after=2)
        producer.send(5)
        id = caller.at(point)
        story.expect("the service has charged", id in calling.books.charged(), id, witness=True)
        story.kill(caller, f"after the service charged for {id}", at=point)
        if point == "after_effect":
            unfinished.append(id)
    producer.close()
    calling.drain()
    for id in unfinished:
        calls = calling.books.calls_of(id)
        story.expect("the service is called again for what was not finished", len(calls) > 1, len(calls), witness=True)
        story.expect("with the same key and the same bytes", len(set(calls)) == 1, len(set(calls)))
    story.did(f"the service had {len(calling.books.calls)} calls, and charged {len(calling.books.charges())} times")
