"""What a handler does outside the transaction is not covered by it."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.copying import LEDGER, READ, SUBSCRIPTIONS, Copying
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.EXTERNAL_EFFECT_DOUBLES,
    asked="A handler also writes a row elsewhere, and is killed before its transaction is committed: is the row "
    "written again?",
    varies="transactions",
    witness={"exactly_once": "duplicate"},
    subscriptions=(*SUBSCRIPTIONS, LEDGER),
    trials=2,
)
def external_effect_doubles(story: Story) -> None:
    copying = Copying(story)
    copying.reader()
    producer = story.producer()
    for _ in story.trials():
        copier = copying.copier(stop_at="before_commit", after=3, external=True)
        producer.send(8)
        id = copier.at("before_commit")
        story.kill(copier, f"before its commit, {id} the last", at="before_commit")
    producer.close()
    copying.drain(LEDGER, external=True)
    sent = [event.id for event in story.tail.events if event.op == "effect" and event.get("subscription") == READ]
    story.expect("what it sent is there once", len(sent) == len(set(sent)), f"{len(sent) - len(set(sent))} twice")
