"""A relay has sent messages of the outbox and dies before it can mark them."""

from brokerkit_conformance.charging import Charging, RelayedPayments
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_COUNT = 20


@check(
    name="once.relay_killed",
    point="once.relay_killed",
    asked="A relay is killed between sending the messages of an outbox and marking them, and another one takes over: "
    "are they on the wire twice, and is every message charged once?",
    varies="store",
    trials=1,
)
def relay_killed(story: Story) -> None:
    charging = Charging(story)
    payments = RelayedPayments(story)
    for _ in story.trials():
        payments.write(_COUNT)
        relay = payments.relay(stop_at="half_done")
        row = relay.at("half_done")
        story.kill(relay, f"between the sending and the marking of its first rows ({row})", at="half_done")
        left = payments.waiting()
        second = payments.relay()
        charger = charging.charger(shape="inbox")
        story.wait(lambda: not payments.waiting(), 60.0)
        story.did(f"the relay's death left {left} rows of {_COUNT} unmarked; the next one sent them")
        charging.wait_charged(timeout=10.0)
        second.close()
        charger.close()
    charging.drain()
    received = story.count("receive", "ok")
    story.expect("the wire has some of them twice", received > _COUNT, received, witness=True)
