"""A worker is killed inside a transaction: after it sent, after its offsets, after it asked for the commit."""

import time

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.copying import READ, SUBSCRIPTIONS, CopierActor, Copying
from brokerkit_conformance.faults.proxy import Rule
from brokerkit_conformance.story import Story

_POINTS = ("after it sent", "after its offsets", "after it asked for the commit", "before the answer")


@check(
    point=FailurePoint.TXN_KILLED,
    asked="A worker is killed inside a transaction, after it sent, after its offsets, after it asked for the commit "
    "and before the answer: is every message copied once, by its successor or by itself?",
    varies="transactions",
    subscriptions=SUBSCRIPTIONS,
    trials=4,
)
def txn_killed(story: Story) -> None:
    copying = Copying(story)
    copying.reader()
    producer = story.producer()
    seen = story.target.proxy is not None and story.target.proxy.sees_frames
    for number in story.trials():
        where = _POINTS[(number - 1) % len(_POINTS)] if seen else _POINTS[0]
        if where == _POINTS[0]:
            copier = copying.copier(stop_at="before_commit", after=3)
            producer.send(12)
            id = copier.at("before_commit")
            story.wait(lambda: False, 0.3)  # what it sent is on its way by now
            story.kill(copier, f"{where}, {id} the last", at="before_commit")
        else:
            copier = copying.copier(proxied=True)
            rule = _rule(story, copier, where)
            producer.send(12)
            evidence = rule.wait(40.0)
            story.kill(copier, f"{where} ({evidence['frame']})")
            story.heal_network()
        _takes_over(story, copying)
    producer.close()
    copying.drain()


def _takes_over(story: Story, copying: Copying) -> None:
    """What the dead one left open is ended by its successor, not by the broker's patience."""
    longest = story.properties.transaction_seconds
    patience = 30.0 + 3 * story.bound
    began = time.monotonic()
    successor = copying.copier()
    seen = story.wait(lambda: not story.missing(READ), patience)
    if longest is None or longest > patience:
        story.expect("its successor ends what was left open", seen, f"nothing for {time.monotonic() - began:.0f} s")
    successor.close()


def _rule(story: Story, copier: CopierActor, where: str) -> Rule:
    """What in the network tells that it is there; what must not arrive does not."""
    if where == _POINTS[1]:
        return story.armed(story.frames.drop_frame("commit", way="client", of=copier.pid, then="swallow"))
    if where == _POINTS[2]:
        return story.armed(story.frames.see_frame("commit", way="client", of=copier.pid))
    return story.armed(story.frames.drop_frame("commit_answer", way="broker", of=copier.pid, then="swallow"))
