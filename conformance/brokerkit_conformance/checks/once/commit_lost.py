"""The store's connection is lost during a commit: before it arrives, and before its answer does."""

from brokerkit_conformance.charging import Charging
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story


@check(
    name="once.commit_lost",
    point="once.commit_lost",
    asked="The connection to the store is lost during a commit, once before the commit arrives and once after it is "
    "done and before its answer arrives: does the worker go on, and is every message charged once?",
    varies="store",
    trials=2,
)
def commit_lost(story: Story) -> None:
    charging = Charging(story)
    network = charging.store.network
    producer = story.producer()
    charger = charging.charger(through=True, batch=5)
    producer.send(10)
    charging.wait_charged()
    for number in story.trials():
        before = len(charging.books.charged())
        if number % 2:
            rule = network.drop_frame("commit", way="client", of=charger.pid, then="cut")
        else:
            rule = network.drop_frame("commit_answer", way="broker", of=charger.pid, then="cut")
        producer.start(20)
        charging.lost_in_commit(rule, charger.name, f"{next(iter(rule.kinds))}_dropped")
        producer.finish_sending()
        recovered = charging.wait_charged(20, timeout=25.0, since=before)
        story.expect("the worker goes on by itself", recovered, f"{len(charging.books.charged()) - before} charged")
    producer.close()
    charger.close()
    charging.drain()
