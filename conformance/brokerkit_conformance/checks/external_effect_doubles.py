"""What a handler does outside the transaction is not covered by it."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.copying import LEDGER, Copying
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.EXTERNAL_EFFECT_DOUBLES,
    asked="A handler also writes a row elsewhere, and is killed before its transaction is committed: is the row "
    "written again?",
    varies="transactions",
    witness={"exactly_once": "duplicate"},
    subscriptions=(LEDGER,),
    trials=2,
)
def external_effect_doubles(story: Story) -> None:
    copying = Copying(story)
    producer = story.producer()
    for _ in story.trials():
        copier = copying.copier(stop_at="before_commit", after=3, external=True)
        producer.send(8)
        id = copier.at("before_commit")
        story.kill(copier, f"before its commit, {id} the last", at="before_commit")
    producer.close()
    copying.drain_work(external=True)
