"""The send itself is wrong: too large, to a topic that is missing, to one that nobody subscribes to."""

from brokerkit.errors import BrokerkitError, SendError, SendRefused
from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.story import Story

_WAIT = 20.0


@check(
    point=FailurePoint.SEND_FAILS,
    asked="A message that is too large, a topic that is missing, a topic without any subscription: is each refused, "
    "by the name of its cause, and does the producer go on?",
    varies="producer",
    needs_fault=False,
    trials=1,
    claimed_at=("at_least_once", "exactly_once"),  # at most once, a producer is told nothing about its sends
)
def send_refused(story: Story) -> None:
    story.declare()
    for _ in story.trials():
        if story.producer_guarantee == "at_most_once":
            story.did("at most once, a producer is told nothing about its sends: no refusal is owed")
            continue
        _too_large(story)
        _topic_missing(story)
        _unroutable(story)
    producer = story.producer()
    producer.send(10)
    producer.close()
    story.drain()


def _too_large(story: Story) -> None:
    largest = story.properties.max_body_bytes
    if largest is None or largest > 64 * 1024 * 1024:
        story.did(f"no message is too large below 64 MiB (stated limit: {largest})")
        return
    got = _cause_of_refusal(story, story.topic, b"x" * (largest + 65536))
    story.expect("a body above the stated limit is refused as too_large", got == "too_large", got)


def _topic_missing(story: Story) -> None:
    got = _cause_of_refusal(story, f"missing-{story.run_id}", b"nowhere")
    wanted = ("topic_missing", "unroutable", "NotFound")
    story.expect("a send to a topic that is missing is refused", got in wanted, got)


def _unroutable(story: Story) -> None:
    if not story.properties.refuses_unroutable:
        story.did("a send to a topic without a subscription is not refused here; the claim says so")
        return
    lonely = f"lonely-{story.run_id}"
    with story.target.connect() as broker:
        broker.declare(lonely, [])
    got = _cause_of_refusal(story, lonely, b"nobody listens")
    story.expect("a send to a topic without a subscription is refused as unroutable", got == "unroutable", got)


def _cause_of_refusal(story: Story, topic: str, body: bytes) -> str:
    """How a send ends that cannot succeed: the cause of the refusal, or what was said instead."""
    try:
        with story.connect() as broker:
            with broker.producer(topic, guarantee=story.producer_guarantee, delivery_timeout=_WAIT) as producer:
                producer.send(body).result(timeout=_WAIT + 5.0)
    except SendRefused as refused:
        return str(refused.cause)
    except SendError as error:
        return f"unknown: {error}"
    except BrokerkitError as error:
        return type(error).__name__
    except TimeoutError:
        return "nothing in time"
    return "confirmed"
