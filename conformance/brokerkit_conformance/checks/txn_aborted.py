"""A handler fails at the end of its transaction, when everything is sent."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance import atomic
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.copying import SUBSCRIPTIONS, Copying
from brokerkit_conformance.history import History
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.TXN_ABORTED,
    asked="A handler raises when its transaction has sent everything: does nobody see that, does a reader of what is "
    "not committed, and is every message copied once in the end?",
    varies="transactions",
    subscriptions=SUBSCRIPTIONS,
    trials=2,
)
def txn_aborted(story: Story) -> None:
    copying = Copying(story)
    copying.reader()
    peeks = copying.peeker()
    producer = story.producer()
    for _ in story.trials():
        before = copying.ends("fail")
        copier = copying.copier(fails=2, work=0.02)
        producer.send(12, keys=8)
        story.wait(lambda n=before: copying.ends("fail") >= n + 2, 20.0)  # type: ignore[misc]
        aborted = copying.ends("fail") - before
        story.fault("handler_fails", copier.name, lambda n=aborted: {"aborted": n} if n else {})  # type: ignore[misc]
        story.did(f"the handler of {copier.name} failed at the end of {aborted} transactions")
        producer.send(40, keys=8, rate=40)  # what is committed of these is behind what was aborted
        copying.wait_committed()
        copier.close()
    if peeks:
        story.wait(lambda: bool(_peeked(story)), 15.0)
        story.expect(
            "a reader of what is not committed sees the aborted transactions",
            bool(_peeked(story)),
            len(_peeked(story)),
            witness=True,
        )
    producer.close()
    copying.drain()


def _peeked(story: Story) -> set[str]:
    history = History(story.tail.events)
    return atomic.peeked(history, atomic.lives(history))
