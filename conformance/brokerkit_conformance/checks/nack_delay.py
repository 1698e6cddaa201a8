"""Nothing fails: what is given back comes again, no earlier than asked, and nothing else is disturbed."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.history import Event
from brokerkit_conformance.story import Story

DELAY = 1.5


@check(
    point=FailurePoint.NONE,
    asked="Some messages are given back, at once or for a while: do they come again, and not before that?",
    needs_fault=False,
    trials=1,
)
def nack_delay(story: Story) -> None:
    if story.at_most_once:
        story.unsupported("at most once, a delivery is acked before it is handed over: nothing can be given back")
    retry = "block" if story.properties.nack == "blocks" else None
    story.declare(retry=retry)
    producer = story.producer()
    for _ in story.trials():
        producer.send(20, keys=4)
    producer.close()
    sent = sorted(story.sent())
    back = sent[::4]
    delay = 0.0 if story.properties.nack == "immediate" else DELAY
    consumer = story.consumer(nack={"delay": delay, "times": 1, "ids": back})
    story.wait_effects(len(sent), timeout=30.0 + 2 * DELAY * len(back))
    story.did(f"gave {len(back)} of {len(sent)} messages back once, for {delay:g} s")
    for id in back:
        _expect_again(story, id, delay)
    consumer.close()
    story.drain()


def _expect_again(story: Story, id: str, delay: float) -> None:
    mine = sorted((event for event in story.tail.events if event.id == id), key=lambda event: event.t)
    given_back = _first(mine, "nack")
    again = [event for event in mine if event.op == "receive" and given_back and event.t > given_back.t]
    if given_back is None or not again:
        story.expect("a message that was given back comes again", False, id)
        return
    waited = (again[0].t - given_back.t) / 1e9
    story.expect(f"it comes again after {delay:g} s at the earliest", waited >= delay * 0.98, f"{waited:.2f} s")


def _first(events: list[Event], op: str) -> Event | None:
    return next((event for event in events if event.op == op), None)
