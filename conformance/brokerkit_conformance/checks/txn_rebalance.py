"""Workers join, leave in order and are killed while transactions are under way."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.copying import SUBSCRIPTIONS, Copying
from brokerkit_conformance.story import Story

_WORK = 0.005
_OPTIONS = {"max_messages": 50, "max_seconds": 0.5}


@check(
    point=FailurePoint.TXN_REBALANCE,
    asked="Under load workers join, leave in order and are killed, so that work moves in the middle of transactions: "
    "is every message copied once?",
    varies="transactions",
    subscriptions=SUBSCRIPTIONS,
    trials=3,
)
def txn_rebalance(story: Story) -> None:
    copying = Copying(story)
    copying.reader()
    producer = story.producer()
    stays = copying.copier("slot-a", work=_WORK, options=_OPTIONS)
    producer.start(100_000, rate=80, keys=16)
    for _ in story.trials():
        leaves = copying.copier("slot-b", work=_WORK, options=_OPTIONS)
        killed = copying.copier("slot-c", work=_WORK, options=_OPTIONS)
        copying.wait_committed(4)
        story.wait(lambda: False, story.random.uniform(0.2, 1.5))
        story.kill(killed, "in the middle of its work")
        copying.wait_committed(4)
        leaves.close()
        story.did(f"{leaves.name} left in order")
    producer.stop()
    stays.close()
    copying.drain()
