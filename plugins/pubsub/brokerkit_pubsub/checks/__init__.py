"""Pub/Sub's own hazards, which no emulator shows by itself: requests and answers lost while the connection goes on.

They run beside the suite's checks; the claims name each.
"""

from __future__ import annotations

from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_MANY = 12


@check(
    point="hazard_publish_answer_lost",
    asked="A batch is stored and its answer is lost, the connection goes on: is it told as confirmed in the end, and "
    "how often is it there?",
    varies="producer",
    witness={"at_least_once": "duplicate"},
)
def hazard_publish_answer_lost(story: Story) -> None:
    if story.producer_guarantee == "at_most_once":
        story.unsupported("at most once, nobody waits for the answer")
    frames = story.frames
    story.declare()
    consumer = story.consumer()
    producer = story.producer(proxied=True)
    for _ in story.trials():
        rule = story.armed(frames.drop_frame("confirm", way="broker", of=producer.pid, then="pass"))
        producer.start(3)
        evidence = story.fired(rule, "confirm_dropped", producer.name)
        story.did(f"swallowed a {evidence['frame']} on its way to {producer.name}, and nothing else")
        producer.finish_sending()
    producer.close()
    consumer.close()
    story.drain()


@check(
    point="hazard_pull_answer_lost",
    asked="Messages are on their way to a consumer and never arrive, the connection goes on: do they come again when "
    "the lease that nobody has is over?",
)
def hazard_pull_answer_lost(story: Story) -> None:
    frames = story.frames
    story.declare()
    producer = story.producer()
    consumer = story.consumer(proxied=True)
    for number in story.trials():
        rule = story.armed(frames.drop_frame("deliver", way="broker", of=consumer.pid, then="pass"))
        producer.send(_MANY)
        evidence = story.fired(rule, "pull_answer_dropped", consumer.name)
        story.did(f"swallowed a {evidence['frame']} of {evidence['bytes']} bytes")
        story.wait_effects(_MANY * number, timeout=10.0 + 2 * story.bound)
    producer.close()
    consumer.close()
    story.drain()


@check(
    point="hazard_ack_answer_lost",
    asked="Acks were taken and their answer is lost, the connection goes on: are they asked again, and does nothing "
    "come twice?",
)
def hazard_ack_answer_lost(story: Story) -> None:
    if story.at_most_once:
        story.unsupported("at most once, a delivery whose ack has no answer is dropped")
    frames = story.frames
    story.declare()
    producer = story.producer()
    consumer = story.consumer(proxied=True)
    for number in story.trials():
        rule = story.armed(frames.drop_frame("ack_answer", way="broker", of=consumer.pid, then="pass"))
        producer.send(_MANY)
        evidence = story.fired(rule, "ack_answer_dropped", consumer.name)
        story.did(f"swallowed a {evidence['frame']}")
        story.wait_effects(_MANY * number)
        ended = story.wait(lambda n=number: len(_ends(story, consumer.name)) == _MANY * n, 5.0)  # type: ignore[misc]
        story.expect("every ack is asked again until it is answered", ended, len(_ends(story, consumer.name)))
        # Under exactly-once delivery the second answer may be that the id is stale: by the first, or by another hand.
        others = set(_ends(story, consumer.name).values()) - {"settled", "unknown"}
        story.expect("none is said to be lost", not others, others)
    producer.close()
    consumer.close()
    story.drain()


@check(
    point="hazard_renewal_lost",
    asked="One renewal of leases is lost while a handler takes three of them: is the next one in time for it and for "
    "what is buffered behind it?",
    trials=2,
)
def hazard_renewal_lost(story: Story) -> None:
    if story.at_most_once:
        story.unsupported("at most once, the ack goes before the work: no lease is renewed")
    frames = story.frames
    story.declare()
    producer = story.producer()
    lease = story.properties.lease_seconds or story.bound
    for _ in story.trials():
        consumer = story.consumer(proxied=True, stop_at="before_ack")
        producer.send(_MANY)
        id = consumer.at("before_ack")
        rule = story.armed(frames.drop_frame("extend", way="client", of=consumer.pid, then="pass"))
        evidence = story.fired(rule, "renewal_dropped", consumer.name)
        story.did(f"swallowed a {evidence['frame']} of {len(evidence['ids'])} messages while {id} was worked on")
        other = story.consumer()
        story.wait(lambda: False, 3 * lease)
        taken = len(story.received_by(other.name))
        story.expect("nobody else is given what is held", taken == 0, taken)
        other.close()
        consumer.release()
        story.wait(lambda: not story.missing())
        consumer.close()
    producer.close()
    story.drain()


@check(
    point="hazard_connection_cut",
    asked="A consumer's connection is reset again and again under load: does it go on by itself, with what it holds?",
)
def hazard_connection_cut(story: Story) -> None:
    network = story.network
    story.declare()
    producer = story.producer()
    consumer = story.consumer(proxied=True, work=0.002, prefetch=50)
    producer.start(100_000, rate=150)
    for _ in story.trials():
        before = len(story.effects())
        story.wait_effects(before + story.random.randint(20, 60))
        story.fired(story.armed(network.cut(of=consumer.pid)), "network_cut", consumer.name)
        went_on = story.wait_effects(len(story.effects()) + 40, timeout=10.0 + 2 * story.bound)
        story.expect("the consumer goes on by itself", went_on, len(story.effects()) - before)
    producer.stop()
    story.wait(lambda: not story.missing(), 10.0 + story.bound)
    consumer.close()
    story.drain()


def _ends(story: Story, actor: str) -> dict[str, str]:
    """How the acks of this actor ended, by message; those that have."""
    ends = [e for e in story.tail.events if e.op == "ack" and e.type == "ok" and e.actor == actor]
    return {str(event.id): str(event.get("end")) for event in ends}
