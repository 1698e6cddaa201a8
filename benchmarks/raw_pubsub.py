"""Raw google-cloud-pubsub at its best practice: what brokerkit's Pub/Sub figures are held against.

Sends go through the publisher client's own batches, a thousand messages or ten milliseconds each, with a callback for
each confirm. Receives are unary pulls of a thousand and one acknowledge for each, read through the plain protobuf
classes; `streaming` is the client's streaming pull with a callback that acks, as its documentation shows. `same_wire`
writes and reads the message that brokerkit's plugin writes: an id made for each, and the time.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import Any

from google.cloud import pubsub_v1

BATCH = 1000
PATIENCE = 120.0


def send(address: str, topic: str, count: int, size: int, *, same_wire: bool = True) -> float:
    """Confirmed messages a second into `topic`, a whole name."""
    os.environ["PUBSUB_EMULATOR_HOST"] = address
    settings = pubsub_v1.types.BatchSettings(max_messages=BATCH, max_bytes=5_000_000, max_latency=0.01)
    client = pubsub_v1.PublisherClient(settings)
    body = b"x" * size
    prefix = os.urandom(12).hex()
    number = itertools.count().__next__
    confirmed = itertools.count(1)
    ended = threading.Event()
    failed: list[BaseException] = []

    def done(future: Any) -> None:
        if future.exception() is not None:
            failed.append(future.exception())
        if next(confirmed) == count:
            ended.set()

    began = time.perf_counter()
    for _ in range(count):
        attributes: dict[str, str] = {}
        if same_wire:
            attributes = {
                "brokerkit-id": f"{prefix}-{number():x}",
                "brokerkit-published-at": str(time.time_ns() // 1_000_000),
            }
        client.publish(topic, body, **attributes).add_done_callback(done)
    in_time = ended.wait(PATIENCE)
    seconds = time.perf_counter() - began
    client.stop()
    if not in_time or failed:
        raise RuntimeError(f"{len(failed)} of {count} failed, and {'' if in_time else 'not '}all ended: {failed[:1]}")
    return count / seconds


def receive(address: str, subscription: str, count: int, *, same_wire: bool = True) -> float:
    """Messages pulled and acknowledged a second from `subscription`, which holds at least `count`."""
    os.environ["PUBSUB_EMULATOR_HOST"] = address
    done = 0
    last: Any = None
    with pubsub_v1.SubscriberClient() as client:
        began = time.perf_counter()
        while done < count:
            response = client.pull(subscription=subscription, max_messages=BATCH, timeout=PATIENCE)
            received = type(response).pb(response).received_messages
            acks = []
            for one in received:
                acks.append(one.ack_id)
                if same_wire:
                    message = one.message
                    attributes = message.attributes
                    headers = {name: attributes[name] for name in attributes if not name.startswith("brokerkit-")}
                    last = (message.data, attributes.get("brokerkit-id"), headers)
            if acks:
                client.acknowledge(subscription=subscription, ack_ids=acks, timeout=PATIENCE)
            done += len(acks)
            if time.perf_counter() - began > PATIENCE:
                raise RuntimeError(f"only {done} of {count} came")
        seconds = time.perf_counter() - began
    if same_wire and (last is None or not last[1]):
        raise RuntimeError("a message without id")
    return done / seconds


def streaming(address: str, subscription: str, count: int) -> float:
    """Messages a second through a streaming pull whose callback acks each."""
    os.environ["PUBSUB_EMULATOR_HOST"] = address
    received = itertools.count(1)
    ended = threading.Event()

    def handle(message: Any) -> None:
        message.ack()
        if next(received) == count:
            ended.set()

    with pubsub_v1.SubscriberClient() as client:
        began = time.perf_counter()
        future = client.subscribe(subscription, handle)
        in_time = ended.wait(PATIENCE)
        seconds = time.perf_counter() - began
        future.cancel()
        future.result(PATIENCE)
    if not in_time:
        raise RuntimeError(f"only {next(received) - 1} of {count} came")
    return count / seconds
