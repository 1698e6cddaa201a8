"""The broker has committed; its answer never arrives, and the connection is gone."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.copying import SUBSCRIPTIONS, Copying
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.TXN_COMMIT_ANSWER_LOST,
    asked="A commit is carried out, its answer swallowed and the connection reset: does the worker go on from what the "
    "broker says, and is every message copied once?",
    varies="transactions",
    subscriptions=SUBSCRIPTIONS,
    trials=3,
)
def txn_commit_answer_lost(story: Story) -> None:
    copying = Copying(story)
    frames = story.frames
    copying.reader()
    producer = story.producer()
    copier = copying.copier(proxied=True, options={"max_messages": 5})
    producer.send(10)
    copying.wait_committed(since=0)
    for _ in story.trials():
        rule = story.armed(frames.drop_frame("commit_answer", way="broker", of=copier.pid, then="cut"))
        before = copying.ends("ok")
        producer.start(20)  # four transactions at least, of which one's answer is lost
        evidence = story.fired(rule, "commit_answer_dropped", copier.name, timeout=40.0)
        story.did(f"swallowed a {evidence['frame']} on its way to {copier.name} and reset its connections")
        story.heal_network()
        producer.finish_sending()
        story.expect("the worker goes on", copying.wait_committed(3, 60.0, since=before), copying.ends("ok"))
    producer.close()
    copier.close()
    copying.drain()
