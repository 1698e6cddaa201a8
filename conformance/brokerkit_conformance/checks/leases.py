"""What the checks of leases share."""

from __future__ import annotations

from brokerkit_conformance.history import Event
from brokerkit_conformance.story import ConsumerActor, Story

BEHIND = 100
"""Deliveries that wait in a consumer's buffer behind a slow handler."""


def need_held(story: Story) -> None:
    """Raises CannotInduce where nothing is held that could be lost."""
    if story.at_most_once:
        story.unsupported("at most once, a delivery is acked before it is handed over: nothing is held any more")


def need_leases(story: Story) -> float:
    """Seconds of the leases that the story has from here on. Raises CannotInduce."""
    need_held(story)
    return story.shorten_leases()


def need_kept_leases(story: Story) -> float:
    """The same, where somebody can keep them."""
    if story.properties.lease == "fixed":
        story.unsupported("its leases cannot be renewed: a handler has to end before its lease does")
    return need_leases(story)


def newcomer(story: Story) -> ConsumerActor | None:
    """Another consumer, which takes what comes free. None where leases are polled: there a newcomer moves whole
    partitions, whatever became of the leases, and who lost one sees it again by itself."""
    return story.consumer() if story.properties.lease == "renewable" else None


def end_of_ack(story: Story, actor: str, id: str) -> str:
    """Waits for what this actor's ack of `id` ends as, or the error it raises; empty when it stays open."""
    story.wait(lambda: bool(_end_of_ack(story, actor, id)), 15.0)
    return _end_of_ack(story, actor, id)


def _end_of_ack(story: Story, actor: str, id: str) -> str:
    for event in story.tail.by(actor, "ack"):
        if event.id == id and event.type in ("ok", "fail") and event.get("end") != "sent":
            return str(event.get("end") or event.get("error"))
    return ""


def told_of_lost_leases(story: Story, actor: str) -> list[Event]:
    """Events by which this actor was told that it lost some."""
    return [event for event in story.tail.by(actor, "event") if event.get("kind") in ("lease_lost", "lost")]


def expect_kept(story: Story, actor: str, held: int) -> None:
    """This actor had so many at once, and lost none of them."""
    story.tail.refresh()
    counts = [event.get("count") for event in story.tail.by(actor, "held")]
    story.expect(f"at least {held} were held at once", max(counts, default=0) >= held, counts)
    lost = told_of_lost_leases(story, actor)
    story.expect("no lease was lost", not lost, lost[0].get("detail") if lost else "")
