"""A batch call succeeds with 200, and one of its entries did not."""

from __future__ import annotations

from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.faults.proxy import Changed
from brokerkit_conformance.story import Story

from brokerkit.driver import Frame
from brokerkit_sqs.checks import ENDPOINT
from brokerkit_sqs.checks.spoil import answer, content_of, failed_entry, with_content


@check(
    point="hazard_batch_failed_in_part",
    asked="One entry of a batch of sends, and one of a batch of deletes, is kept from the endpoint and told as failed: "
    "is that one tried again, and no other?",
    varies="both",
)
def hazard_batch_failed_in_part(story: Story) -> None:
    if "at_most_once" in (story.producer_guarantee, story.guarantee):
        story.unsupported("at most once, nothing is tried again")
    frames = story.frames
    story.declare()
    straight = story.target.versions.get("fan_out") != "sns"
    producer = story.producer(proxied=True)
    for number in story.trials():
        if straight:
            failing = FailingEntry()
            asked = story.armed(frames.change_frame("publish", way="client", of=producer.pid, change=failing.asked))
            told = story.armed(frames.change_frame("confirm", way="broker", of=producer.pid, change=failing.told))
        producer.start(30)
        if straight:
            evidence = story.fired(asked, "send_failed_in_part", ENDPOINT)
            story.did(f"kept one entry of a {evidence['frame']} back and told it as failed")
        producer.finish_sending()
        if straight:
            story.expect("the answer told of the failed entry", bool(told.evidence or failing.alone), number)
        deleting = FailingEntry()
        consumer = story.start_consumer(proxied=True)
        asked = story.armed(frames.change_frame("ack", way="client", of=consumer.pid, change=deleting.asked))
        story.armed(frames.change_frame("ack_answer", way="broker", of=consumer.pid, change=deleting.told))
        consumer.ready()
        evidence = story.fired(asked, "delete_failed_in_part", ENDPOINT)
        story.did(f"kept one entry of a {evidence['frame']} back and told it as failed")
        story.wait_effects(30 * number)
        story.wait(lambda: story.depth() == 0, 15.0)
        story.heal_network()
        consumer.close()
    unconfirmed = story.sent() - story.sent("ok")
    story.expect("every send is confirmed in the end", not unconfirmed, len(unconfirmed))
    producer.close()
    story.drain()


class FailingEntry:
    """Takes the first entry out of a batch on its way in, and tells of it as failed on the way back."""

    def __init__(self) -> None:
        self.alone = False
        self._taken = ""
        self._others: set[str] = set()

    def asked(self, frame: Frame) -> Changed | None:
        content = content_of(frame.raw)
        entries = content.get("Entries") or []
        if not entries:
            return None
        self._taken = str(entries[0]["Id"])
        self._others = {str(entry["Id"]) for entry in entries[1:]}
        if not self._others:
            self.alone = True
            return Changed(back=answer({"Successful": [], "Failed": [failed_entry(self._taken)]}))
        return Changed(with_content(frame.raw, {**content, "Entries": entries[1:]}))

    def told(self, frame: Frame) -> Changed | None:
        content = content_of(frame.raw)
        ended = [*(content.get("Successful") or []), *(content.get("Failed") or [])]
        if not self._others or {str(entry["Id"]) for entry in ended} != self._others:
            return None
        failed = [*(content.get("Failed") or []), failed_entry(self._taken)]
        return Changed(with_content(frame.raw, {**content, "Failed": failed}))
