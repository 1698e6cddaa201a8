"""Transactions that last longer than a worker may be silent, and workers that are."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.copying import SUBSCRIPTIONS, Copying
from brokerkit_conformance.story import Story

_LITTLE, _MUCH = 2, 5
"""How long transactions are meant to last, in sessions."""
_WORK = 0.05


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
    if longest is not None and longest <= 2 * _MUCH * session:
        story.unsupported("a transaction cannot outlive its session there")
    copying = Copying(story)
    copying.reader()
    producer = story.producer()
    # One whose transaction is over when it thaws, and one that then goes on; never out of work, which would end it.
    workers = [
        copying.copier(f"slot-{times}", work=_WORK, options=_options(times * session)) for times in (_LITTLE, _MUCH)
    ]
    patience = 30.0 + 3 * _MUCH * session
    producer.start(100_000, rate=2.5 / _WORK, keys=16)
    for number in story.trials():
        frozen = workers[number % 2]
        copying.wait_committed(timeout=patience, actor=frozen.name)
        story.wait(lambda: False, story.random.uniform(0.3, 1.0) * session)
        story.freeze(frozen, "at the beginning of a transaction")
        story.wait(lambda: False, story.bound + 0.5 * session)
        story.thaw(frozen)
        copying.wait_committed(timeout=patience, actor=frozen.name)
    producer.stop()
    copying.drain()
    lasted = copying.longest()
    story.expect("a transaction outlives a session", lasted > session, f"{lasted:.1f} s", witness=True)


def _options(seconds: float) -> dict[str, float]:
    return {"max_messages": int(seconds / _WORK), "max_seconds": seconds}
