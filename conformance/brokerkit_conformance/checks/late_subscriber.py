"""Nothing fails: a subscription begins where it was declared to begin."""

from brokerkit.errors import BrokerkitError
from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.NONE,
    asked="A subscription declared after messages were sent: does it get what is sent from then on, or everything, "
    "as it was declared?",
    varies="consumer",
    needs_fault=False,
    trials=1,
)
def late_subscriber(story: Story) -> None:
    story.declare()
    producer = story.producer()
    producer.send(10)
    before = story.sent()
    story.declare("late", start="now")
    try:
        story.declare("all", start="earliest")
        replays = True
    except BrokerkitError as error:
        story.note(f"start='earliest' is refused: {error}")
        replays = False
    for _ in story.trials():
        producer.send(10)
    producer.close()
    sent = story.sent()
    story.did(f"declared late subscriptions after {len(before)} of {len(sent)} messages")
    late = story.consumer(subscription="late")
    story.wait_effects(len(sent - before), "late")
    every = story.consumer(subscription="all") if replays else None
    if every is not None:
        story.wait_effects(len(sent), "all")
    story.drain()
    late.process.end()
    _expect_exactly(story, "a subscription from now on gets what was sent since", "late", sent - before)
    if replays:
        _expect_exactly(story, "a subscription from the earliest gets everything", "all", sent)


def _expect_exactly(story: Story, what: str, subscription: str, wanted: set[str]) -> None:
    got = story.effects(subscription)
    missing, more = len(wanted - got), len(got - wanted)
    story.expect(what, got == wanted, f"{len(got)} of {len(wanted)}, {missing} missing, {more} too many")
