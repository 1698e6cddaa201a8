"""The store's process is killed under load and started again on the same data."""

from brokerkit_conformance.charging import Charging
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    name="once.store_killed",
    point="once.store_killed",
    asked="The store is killed with SIGKILL while workers charge and restarted on its data: do they go on by "
    "themselves, and is every message charged once?",
    varies="store",
    trials=2,
)
def store_killed(story: Story) -> None:
    charging = Charging(story)
    charging.store.need_process()
    producer = story.producer()
    producer.send(50)
    for _ in range(2):
        charging.charger(batch=10, work=0.005)
    producer.start(100_000, rate=100)
    charging.wait_charged(30)
    for _ in story.trials():
        story.wait(lambda: False, story.random.uniform(0.1, 0.5))
        charging.break_store()
        after = len(charging.books.charged())
        recovered = charging.wait_charged(30, since=after)
        story.expect("workers go on by themselves", recovered, f"{len(charging.books.charged()) - after} charged")
    producer.stop()
    charging.wait_charged(timeout=20.0)
    charging.drain()
