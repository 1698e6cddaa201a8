"""A worker is silent for longer than a transaction may be open."""

import time
from typing import Any

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.copying import SUBSCRIPTIONS, Copying
from brokerkit_conformance.story import Story

_SECONDS = 4.0
_MARGIN = 4.0


@check(
    point=FailurePoint.TXN_TIMED_OUT,
    asked="A worker sends and is silent until the broker has given its transaction up, then commits: is it told that "
    "nothing happened, and is every message copied once?",
    varies="transactions",
    subscriptions=SUBSCRIPTIONS,
    trials=1,
)
def txn_timed_out(story: Story) -> None:
    if story.properties.transaction_seconds is None:
        story.unsupported("it never ends a transaction by itself")
    copying = Copying(story)
    copying.reader()
    producer = story.producer()
    settings = {story.properties.transaction_setting: f"{_SECONDS:g}"}
    for _ in story.trials():
        copier = copying.copier(stop_at="before_commit", settings=settings)
        producer.send(12)
        copier.at("before_commit")
        other = copying.copier("slot-b", settings=settings)
        story.fault("silence", copier.name, _silence)
        copier.release()
        story.wait(lambda name=copier.name: _ended(copying, name) > 0, 60.0)  # type: ignore[misc]
        late = copying.ends("ok", copier.name)
        story.expect("a transaction beyond its time ends uncommitted", late == 0, f"{late} committed", witness=True)
        copier.close()
        other.close()
    producer.close()
    copying.drain()


def _silence() -> dict[str, Any]:
    began = time.monotonic()
    time.sleep(_SECONDS + _MARGIN)  # the silence itself
    return {"seconds": round(time.monotonic() - began, 3)}


def _ended(copying: Copying, actor: str) -> int:
    return sum(copying.ends(end, actor) for end in ("ok", "fail", "info"))
