"""A consumer stands still past its lease or session, another takes over, and it wakes up."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_KNOWN_LOST = ("lost", "LeaseLost", "Closed")
_AT_ONCE = (*_KNOWN_LOST, "unknown")
"""What an ack may end as that was made before the library could notice: not known, or lost; never settled."""


@check(
    point=FailurePoint.CONSUMER_FROZEN,
    asked="A consumer is frozen between work and ack until its lease or session is over, and another takes over: what "
    "is its late ack reported as when it thaws, and does it do harm?",
    witness={"at_least_once": "duplicate"},
    trials=2,
)
def consumer_frozen(story: Story) -> None:
    story.declare()
    producer = story.producer()
    for number in story.trials():
        frozen = story.consumer(stop_at="before_ack")
        producer.send(5)
        id = frozen.at("before_ack")
        story.freeze(frozen, f"after the effect of {id}, before its ack", at="before_ack")
        other = story.consumer()
        if not story.at_most_once:
            taken = story.wait_effect_by(other.name, id, timeout=20.0 + 3 * story.bound)
            story.expect("another consumer takes over what the frozen one held", taken, id, witness=True)
        else:
            story.wait(lambda: False, story.bound)
        story.thaw(frozen)
        at_once = number % 2 == 1
        if not at_once:
            # Long enough for the library to notice that its session or lease is over, and say so by itself.
            story.wait(lambda: False, 3.0)
        frozen.release()
        if not story.at_most_once:
            story.wait(lambda name=frozen.name, it=id: _told(story, name, it) is not None, 15.0)  # type: ignore[misc]
            told = _told(story, frozen.name, id)
            allowed = _AT_ONCE if at_once else _KNOWN_LOST
            story.expect(f"a late ack ends as {', '.join(allowed)}", told in allowed, told)
        producer.send(5)
        frozen.process.command("stop")
        frozen.wait_closed()
        other.close()
    producer.close()
    story.drain()


def _told(story: Story, actor: str, id: str) -> str | None:
    """What the ack of `id` ended as, or the error it raised."""
    for event in story.tail.events:
        if event.op == "ack" and event.id == id and event.actor == actor and event.type in ("ok", "fail"):
            return str(event.get("end") or event.get("error"))
    return None
