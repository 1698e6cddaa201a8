"""An id is sent again after the inbox has forgotten it."""

from dataclasses import replace
from datetime import timedelta

from brokerkit import once
from brokerkit.guarantees import Likelihood
from brokerkit.once.transactions import effects_of
from brokerkit_conformance.books import Books
from brokerkit_conformance.charging import Charging
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import WORK, Story

_COUNT = 10
_WINDOW = timedelta(days=15)


@check(
    name="once.sent_after_window",
    point="once.sent_after_window",
    asked="Messages are charged, the inbox is pruned of them, and they are sent again: are they charged again?",
    varies="store",
    needs_fault=False,
    trials=1,
    of_store=lambda claim: replace(claim, duplicate=Likelihood.EXPECTED),
)
def sent_after_window(story: Story) -> None:
    charging = Charging(story)
    books = charging.books
    assert isinstance(books, Books)
    charging.store.need_own()
    producer = story.producer()
    charger = charging.charger()
    for _ in story.trials():
        producer.send(_COUNT)
        charging.wait_charged()
        producer.send(_COUNT, first=0)
        story.wait(lambda: story.depth() == 0, 10.0)
        story.wait(lambda: False, 1.0)
        again = len(books.charges()) - _COUNT
        story.expect("within the window none is charged again", again == 0, again)
        consumer = effects_of(story.topic, WORK)
        # Of this cell alone: others use the store meanwhile, and their marks stay.
        aged = books.age_marks(consumer, 2 * _WINDOW)
        once.prune(charging.store.url(), _WINDOW)
        left = books.marks(consumer)
        story.expect("all of them are forgotten", (aged, left) == (_COUNT, 0), f"{left} of {aged} left", witness=True)
        producer.send(_COUNT, first=0)
        story.did(f"pruned what was seen more than {_WINDOW.days} days ago, {aged - left} ids, and sent them again")
        story.wait(lambda: len(books.charges()) >= 2 * _COUNT, 20.0)
    charger.close()
    producer.close()
    charging.drain()
