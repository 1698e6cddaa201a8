"""A worker is frozen in the middle of a transaction, its successor takes over, and it wakes up."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.copying import SUBSCRIPTIONS, Copying
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.ZOMBIE_FENCED,
    asked="A worker is frozen before its commit, a successor takes its slot and its work, and it thaws and commits: is "
    "it told that nothing happened, is its transaction never seen, and is every message copied once?",
    varies="transactions",
    subscriptions=SUBSCRIPTIONS,
    trials=2,
)
def zombie_fenced(story: Story) -> None:
    copying = Copying(story)
    copying.reader()
    producer = story.producer()
    for _ in story.trials():
        zombie = copying.copier(stop_at="before_commit")
        producer.send(8)
        id = zombie.at("before_commit")
        story.freeze(zombie, f"before its commit, {id} the last", at="before_commit")
        before = copying.ends("ok")
        successor = copying.copier()
        taken = copying.wait_committed(timeout=30.0 + 3 * story.bound, since=before)
        story.expect("the successor takes over what the zombie held", taken, copying.ends("ok"), witness=True)
        story.thaw(zombie)
        zombie.release()
        story.wait(lambda name=zombie.name: copying.ends("fail", name) + copying.ends("ok", name) > 0, 60.0)  # type: ignore[misc]
        committed = copying.ends("ok", zombie.name)
        story.expect("the zombie's commit is refused", committed == 0, f"{committed} committed")
        zombie.process.command("stop")
        zombie.process.wait_end(60.0)
        before = copying.ends("ok")
        producer.send(8)
        copying.wait_committed(since=before)
        successor.close()
    producer.close()
    copying.drain()
