"""The broker's process is killed with transactions open, and started again on the same data."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.copying import SUBSCRIPTIONS, Copying
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.TXN_BROKER_KILLED,
    asked="The broker is killed under load with transactions open and restarted on its data: do workers go on by "
    "themselves, does no transaction keep readers waiting for ever, and is every message copied once?",
    varies="transactions",
    subscriptions=SUBSCRIPTIONS,
    exclusive=True,
    trials=2,
)
def txn_broker_killed(story: Story) -> None:
    copying = Copying(story)
    story.need_broker_process()
    copying.reader()
    producer = story.producer()
    for slot in ("slot-a", "slot-b"):
        copying.copier(slot, work=0.003, options={"max_messages": 100, "max_seconds": 0.5})
    producer.start(100_000, rate=100, keys=16)
    copying.wait_committed(3)
    for _ in story.trials():
        story.wait(lambda: False, story.random.uniform(0.2, 0.8))
        story.break_broker()
        recovered = copying.wait_committed(3, timeout=90.0)
        story.expect("workers go on by themselves", recovered, f"{copying.ends('ok')} committed")
    producer.stop()
    copying.drain()
