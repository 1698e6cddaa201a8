"""SQS hands a message out again to the consumer that has it in hand, under a new receipt handle."""

from __future__ import annotations

from brokerkit_conformance.checks.leases import end_of_ack
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.faults.proxy import Changed
from brokerkit_conformance.story import Story

from brokerkit.driver import Frame
from brokerkit_sqs.checks import ENDPOINT
from brokerkit_sqs.checks.spoil import content_of, with_content


@check(
    point="hazard_received_again",
    asked="A message comes again to the consumer whose handler works on it, under a new receipt handle, and the old "
    "one is worth nothing any more: is it handled once, and deleted by the newest handle?",
    trials=2,
)
def hazard_received_again(story: Story) -> None:
    if story.at_most_once:
        story.unsupported("at most once, a message is deleted before it is handed over: nothing is in hand")
    frames = story.frames
    story.declare()
    producer = story.producer()
    for _ in story.trials():
        consumer = story.consumer(proxied=True, stop_at="before_ack")
        rule = story.armed(frames.change_frame("heartbeat", way="client", of=consumer.pid, change=_given_back))
        producer.send(1)
        id = consumer.at("before_ack")
        again = story.armed(frames.see_frame("deliver", way="broker", of=consumer.pid))
        story.fired(rule, "renewal_lost", ENDPOINT)
        story.fired(again, "handed_out_again", ENDPOINT)
        story.wait(lambda: False, 0.5)  # the answer has yet to be looked at
        consumer.release()
        end = end_of_ack(story, consumer.name, id)
        story.expect("the ack is settled", end == "settled", end)
        gone = story.wait(lambda: story.depth() == 0, 5.0)
        story.expect("the message is deleted", gone)
        story.did(f"{consumer.name} was given {id} a second time while it worked on it; its ack: {end}")
        story.heal_network()
        consumer.close()
    producer.close()
    story.drain()


def _given_back(asked: Frame) -> Changed:
    """The renewal as one that makes the message visible at once."""
    content = content_of(asked.raw)
    entries = [{**entry, "VisibilityTimeout": 0} for entry in content.get("Entries", ())]
    return Changed(on=with_content(asked.raw, {**content, "Entries": entries}))
