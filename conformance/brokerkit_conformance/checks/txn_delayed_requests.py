"""A request of a transaction is held up in the network, and reaches the broker inside the worker's next one."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.copying import READ, SUBSCRIPTIONS, CopierActor, Copying
from brokerkit_conformance.faults.proxy import Rule
from brokerkit_conformance.story import Story

_COMMIT, _ABORT, _SEND = "commit", "abort", "send"
_WHAT = (_COMMIT, _ABORT, _SEND)
_MESSAGES = 10


@check(
    point=FailurePoint.TXN_DELAYED_REQUESTS,
    asked="A worker's request to commit, to abort or to store is held up and its connection reset, so that it asks "
    "again and goes on; what was held up arrives inside its next transaction: does it end nothing there, and is every "
    "message copied once?",
    varies="transactions",
    subscriptions=SUBSCRIPTIONS,
    trials=3,
)
def txn_delayed_requests(story: Story) -> None:
    copying = Copying(story)
    frames = story.frames
    copying.reader()
    peeks = copying.peeker()
    producer = story.producer()
    for number in story.trials():
        what = _WHAT[(number - 1) % len(_WHAT)]
        # It stands still before the end of the first transaction that has a message more than the faulted one. An
        # abort before anything is on its way asks the broker for nothing: so each message takes its time.
        copier = copying.copier(
            proxied=True, stop_at="before_commit", after=_MESSAGES + 1, fails=1 if what == _ABORT else 0, work=0.02
        )
        rule = story.armed(frames.hold_frame("publish" if what == _SEND else "commit", of=copier.pid))
        producer.send(_MESSAGES)
        evidence = story.fired(rule, f"{what}_held_up", copier.name, timeout=40.0)
        story.did(f"held up a {evidence['frame']} of {copier.name} ({what}) and reset its connection")
        producer.send(_MESSAGES)
        id = copier.at("before_commit")
        if peeks:
            story.expect("it sends in another transaction", copying.wait_sent(copier), copier.name)
        _arrives(story, rule, copier, what)
        if what == _COMMIT:
            story.kill(copier, f"before its commit, {id} the last", at="before_commit")
            copier = copying.copier()  # nothing of this one is left for the next
        else:
            copier.release()
        seen = story.wait(lambda: not story.missing(READ), 60.0 + 3 * story.bound)
        story.expect("what it had is done, by itself or by its successor", seen, copying.ends("ok"))
        copier.close()
    producer.close()
    copying.drain()


def _arrives(story: Story, rule: Rule, copier: CopierActor, what: str) -> None:
    answer = "confirm" if what == _SEND else "commit_answer"
    came = story.fault(f"late_{what}", copier.name, lambda: story.frames.let_in(rule, answer))
    story.did(f"let it in, inside the next transaction: the broker answered {came['answer']}")
