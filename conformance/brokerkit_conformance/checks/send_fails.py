"""The broker cannot be reached when a message is sent, and then it can again."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    point=FailurePoint.SEND_FAILS,
    asked="The network refuses every connection while messages are sent, and lets them through later: what arrives?",
    varies="producer",
    witness={"at_most_once": "loss"},
)
def send_fails(story: Story) -> None:
    network = story.network
    story.declare()
    consumer = story.consumer()
    producer = story.producer(proxied=True)
    producer.send(10)
    for _ in story.trials():
        rule = story.armed(network.refuse(of=producer.pid))
        producer.start(20, rate=40)
        story.fired(rule, "network_refuse", producer.name)
        story.wait(lambda: False, 1.5)
        story.did(f"refused {producer.name}'s connections while it sent 20 messages")
        story.heal_network()
        producer.finish_sending()
        producer.send(10, rate=20)
    producer.close()
    consumer.close()
    story.drain()
