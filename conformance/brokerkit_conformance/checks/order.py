"""Nothing fails: within the scope that the plugin states, first deliveries keep the send order."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.NONE,
    asked="Messages of several keys, sent in a pipeline, one consumer: do those of one key arrive in the send order?",
    varies="both",
    claimed_if=lambda properties: properties.order != "none",
    needs_fault=False,
    trials=1,
)
def order(story: Story) -> None:
    story.declare()
    consumer = story.consumer()
    producer = story.producer()
    for _ in story.trials():
        producer.send(400, keys=8)
    producer.close()
    story.wait_effects(400 * story.trials_done)
    story.did(
        f"sent {400 * story.trials_done} messages of 8 keys; the stated scope of order is {story.properties.order}"
    )
    if story.properties.order != "none":
        wrong = _inversions(story)
        story.expect("within a key, first effects are in the send order", wrong == 0, f"{wrong} out of order")
    consumer.close()
    story.drain()


def _inversions(story: Story) -> int:
    """First effects that come after one of the same key that was sent later."""
    sent = {
        event.id: (event.get("key"), event.get("seq"))
        for event in story.tail.events
        if event.op == "send" and event.type == "invoke"
    }
    latest: dict[str, int] = {}
    seen: set[str] = set()
    wrong = 0
    for event in sorted((e for e in story.tail.events if e.op == "effect"), key=lambda event: event.t):
        if event.id is None or event.id in seen or event.id not in sent:
            continue
        seen.add(event.id)
        key, seq = sent[event.id]
        wrong += seq < latest.get(key, -1)
        latest[key] = max(seq, latest.get(key, -1))
    return wrong
