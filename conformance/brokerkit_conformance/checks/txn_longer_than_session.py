"""Transactions that last longer than a worker may be silent, and workers that are."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.copying import SUBSCRIPTIONS, Copying
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.TXN_LONGER_THAN_SESSION,
    asked="Each transaction lasts longer than a member may be silent, and a worker is frozen in the middle of one for "
    "longer than that, again and again: is every message copied once?",
    varies="transactions",
    subscriptions=SUBSCRIPTIONS,
    trials=3,
)
def txn_longer_than_session(story: Story) -> None:
    session = story.properties.lease_seconds
    longest = story.properties.transaction_seconds
    if session is None:
        story.unsupported("its members have no session of their own that could be over")
    if longest is not None and longest <= 2.5 * session:
        story.unsupported("a transaction cannot outlive its session there")
    copying = Copying(story)
    copying.reader()
    producer = story.producer()
    options = {"max_messages": 100_000, "max_seconds": 2.0 * session}
    workers = [copying.copier(slot, work=0.002, options=options) for slot in ("slot-a", "slot-b")]
    producer.start(100_000, rate=100, keys=16)
    copying.wait_committed(2, timeout=30.0 + 4 * session)
    for number in story.trials():
        frozen = workers[number % 2]
        story.wait(lambda: False, story.random.uniform(0.3, 1.0) * session)
        story.freeze(frozen, "in the middle of a transaction")
        story.wait(lambda: False, story.bound + 0.5 * session)
        story.thaw(frozen)
        copying.wait_committed(2, timeout=30.0 + 6 * session)
    producer.stop()
    copying.drain()
