"""A consumer stands still past its lease or session, another takes over, and it wakes up."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_HARMLESS = {"lost", "LeaseLost", "Closed"}


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
    for _ in story.trials():
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
        frozen.release()
        if not story.at_most_once:
            story.wait(lambda name=frozen.name, it=id: _told(story, name, it) is not None, 15.0)  # type: ignore[misc]
            told = _told(story, frozen.name, id)
            story.expect("the late ack is reported as lost", told in _HARMLESS, told)
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
