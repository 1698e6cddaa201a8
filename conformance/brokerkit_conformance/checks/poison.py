"""A message that no handler can work on."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

ATTEMPTS = 3


@check(
    point=FailurePoint.POISON,
    asked="A handler always fails on one message: does it go to the dead letters after its attempts, with the reason, "
    "while the others go on?",
    trials=1,
)
def poison(story: Story) -> None:
    if story.at_most_once:
        story.unsupported("at most once, a delivery is acked before it is handed over: nothing is tried again")
    if not story.properties.dead_letters:
        story.unsupported("it has no dead letters")
    dead = f"{story.topic}-dead"
    story.declare(attempts=ATTEMPTS, dead_letter=dead)
    producer = story.producer()
    for _ in story.trials():
        producer.send(12)
    producer.close()
    sent = sorted(story.sent("ok"))
    bad = sent[2]
    story.fault("handler_fails", bad, lambda: {"always": True})
    consumer = story.consumer(poison=[bad], prefetch=5)
    others = story.wait(lambda: story.effects() >= set(sent) - {bad}, 30.0 + 4 * story.bound)
    if not story.properties.poison_blocks_others:
        story.expect("the other messages go on", others, f"{len(story.effects())} of {len(sent) - 1}")
    coroner = story.consumer(subscription="dead", topic=dead, dead=True, guarantee="at_least_once", options=_PLAIN)
    buried = story.wait(lambda: bad in story.tail.ids("dead", "ok"), 30.0 + 4 * story.bound)
    story.expect("it goes to the dead letters", buried, bad)
    story.wait(lambda: False, 1.0)
    consumer.close()
    coroner.close()
    _expect_attempts_and_reason(story, bad, consumer.name)
    story.drain()


_PLAIN = {"attempts": None, "dead_letter": None}


def _expect_attempts_and_reason(story: Story, bad: str, worker: str) -> None:
    story.tail.refresh()
    attempts = sum(1 for event in story.received_by(worker) if event.id == bad)
    story.did(f"the handler failed {attempts} times on {bad}, {ATTEMPTS} were allowed")
    story.expect(
        f"it is tried {ATTEMPTS} times, {ATTEMPTS + 1} at most", ATTEMPTS <= attempts <= ATTEMPTS + 1, attempts
    )
    reasons = [event.get("reason") for event in story.tail.events if event.op == "dead" and event.id == bad]
    story.expect("its dead letter says the reason", bool(reasons) and all(reasons), reasons)
