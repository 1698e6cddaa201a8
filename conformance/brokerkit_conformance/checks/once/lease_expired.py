"""A worker's lease or session is over while it still works, and another has its message."""

from brokerkit_conformance.charging import ChargerActor, Charging
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.faults import CannotInduce
from brokerkit_conformance.story import Story


@check(
    name="once.lease_expired",
    point="once.lease_expired",
    asked="A worker outlasts its lease, in its open transaction where its lease can be over while it works, and frozen "
    "before it begins one: another has its message meanwhile. Is every message charged once?",
    varies="store",
    needs_fault=False,
    trials=2,
)
def lease_expired(story: Story) -> None:
    slow = _shortened(story)
    charging = Charging(story)
    producer = story.producer()
    for number in story.trials():
        if number % 2 and slow:
            options = {"max_lease": 0.0, "prefetch": 1}
            first = charging.charger(shape="inbox", stop_at="before_commit", batch=1, options=options)
            producer.send(1)
            id = first.at("before_commit")
            second = _takes_over(story, charging, first, id, slow)
        else:
            first = charging.charger(shape="inbox", stop_at="before_begin")
            producer.send(5)
            id = first.at("before_begin")
            story.freeze(first, f"before the charge of {id}", at="before_begin")
            second = _takes_over(story, charging, first, id, story.bound)
            charging.wait_charged(timeout=20.0)
            story.thaw(first)
        first.release()
        story.wait(lambda name=first.name: _ended(story, name), 30.0)  # type: ignore[misc]
        charging.wait_charged()
        first.process.command("stop")
        first.process.wait_end(60.0)
        second.close()
    producer.close()
    charging.drain()


def _shortened(story: Story) -> float:
    """Seconds of the leases from here on; 0 where none is over while its worker works."""
    if story.properties.lease not in ("renewable", "fixed"):
        return 0.0
    try:
        return story.shorten_leases()
    except CannotInduce as why:
        story.note(str(why))
        return 0.0


def _takes_over(story: Story, charging: Charging, first: ChargerActor, id: str, lease: float) -> ChargerActor:
    second = charging.charger(shape="inbox")
    taken = charging.wait_received(second, id, 30.0 + 5 * lease)
    story.expect("another worker has the message while the first still works", taken, id, witness=True)
    story.did(f"{first.name} held {id} beyond its lease of {lease:g} s; {second.name} got it")
    return second


def _ended(story: Story, actor: str) -> bool:
    """Whether its transaction did."""
    return any(event.type != "invoke" for event in story.tail.by(actor, "txn"))
