"""A million messages through a transform while its workers and its brokers die: each comes out once.

Three workers on three nodes. Every few seconds one is killed, frozen past its session, or one is added for a while;
twice a node is killed and started again. What comes out is read as it comes, and once more at the end, by plain clients
at read_committed that count each number. The same program at least once, with fewer messages, is seen doubling.

BROKERKIT_PROVE_MESSAGES is how many, BROKERKIT_PROVE_SEED repeats the faults. The last lines say what happened.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from brokerkit_conformance.targets import Target, understand, with_settings
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

import brokerkit

from .workers import Workers, told, until

MESSAGES = int(os.environ.get("BROKERKIT_PROVE_MESSAGES", "1000000"))
SEED = int(os.environ.get("BROKERKIT_PROVE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
SESSION = 6.0
EVERY = (2.0, 5.0)
SLOTS = ("slot-1", "slot-2", "slot-3")
RATE = 4000
"""Messages a second that come in, so that the faults meet work; what a slow machine needs longer for is waited for."""
PARTITIONS = 6
RATHER_FEWER = {"exactly_once": 1, "at_least_once": 4}
"""By what the number of messages is divided: it takes no million to see doubling."""

pytestmark = [pytest.mark.prove, pytest.mark.integration, pytest.mark.timeout(3600)]


class Reader:
    """Counts every number that a plain client at read_committed finds, from the beginning of the topic on."""

    def __init__(self, servers: str, topic: str, messages: int) -> None:
        self.messages = messages
        self.counts = bytearray(messages)
        self.received = 0
        self.foreign = 0
        self.at = [0] * PARTITIONS
        self._client = Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": f"soak-{time.monotonic_ns()}",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "log_level": 2,
            }
        )
        self._client.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
        self._stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for message in self._client.consume(1000, 0.2):
                error = message.error()
                if error is None:
                    self._count(message.value() or b"")
                elif error.code() == KafkaError._PARTITION_EOF:
                    self.at[int(message.partition() or 0)] = int(message.offset() or 0)

    def _count(self, body: bytes) -> None:
        number = int(body.partition(b".")[0])
        self.received += 1
        if number >= self.messages or body != written(number).upper():
            self.foreign += 1
        elif self.counts[number] < 255:
            self.counts[number] += 1

    @property
    def different(self) -> int:
        return self.messages - self.missing

    @property
    def missing(self) -> int:
        return self.counts.count(0)

    @property
    def twice(self) -> int:
        return self.different - self.counts.count(1)

    def stop(self) -> None:
        self._stopping.set()
        self.thread.join(30.0)
        self._client.close()


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with Target(understand("kafka:3nodes")) as running:
        yield running


@pytest.mark.parametrize("how", RATHER_FEWER)
def test_every_message_comes_out_once_whatever_dies(target: Target, how: str, tmp_path: Path) -> None:
    messages = MESSAGES // RATHER_FEWER[how]
    print(f"{how}: seed {SEED}, {messages} messages, {os.cpu_count()} cores", flush=True)
    url = with_settings(target.url(), {"session_timeout": f"{SESSION:g}"})
    servers = url.removeprefix("kafka://").partition("?")[0]
    topic, out = f"soak-{how}", f"soak-{how}-out"
    with brokerkit.connect(url) as broker:
        for name in (topic, out):
            broker.declare(name, ["copy"], native={"partitions": PARTITIONS})

    def start(slot: str) -> subprocess.Popen[bytes]:
        arguments = [str(Path(__file__).with_name("copier.py")), url, topic, out, slot, how]
        with (tmp_path / f"{slot}.log").open("ab") as log:
            return subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log)

    workers = Workers(start)
    began = time.monotonic()
    with ExitStack() as stack:
        early = Reader(servers, out, messages)
        stack.callback(early.stop)
        stack.callback(workers.end)
        for slot in SLOTS:
            workers.begin(slot)
        filling = threading.Thread(target=fill, args=(servers, topic, messages), daemon=True)
        filling.start()
        shake(target, workers, early)
        filling.join(600)
        assert not filling.is_alive()
        until(lambda: early.missing == 0, 300.0, lambda: f"{early.missing} are missing")
        until(lambda: left(url, topic) == 0, 120.0, lambda: f"the offsets are {left(url, topic)} before the end")
        for slot in list(workers.by_slot):
            workers.leave(slot)
        late = Reader(servers, out, messages)
        stack.callback(late.stop)
        until(lambda: late.missing == 0, 300.0, lambda: f"a late reader misses {late.missing}")
        until(lambda: late.received == early.received, 60.0, lambda: "the readers disagree")
        until(lambda: late.at == ends(servers, out), 60.0, lambda: f"readers stand at {late.at}: {ends(servers, out)}")
    told(workers.faults, time.monotonic() - began)
    for name, reader in (("early", early), ("late", late)):
        print(f"{name} reader: {reader.received} received, {reader.missing} lost, {reader.twice} doubled", flush=True)
    assert early.foreign == late.foreign == 0
    assert early.counts == late.counts
    if how == "exactly_once":
        assert early.twice == 0
        assert early.received == late.received == messages
    else:
        assert early.twice > 0, "the same program at least once has to be seen doubling"


def ends(servers: str, topic: str) -> list[int]:
    """The offset behind the last one of each partition, what nobody has committed included."""
    client = Consumer({"bootstrap.servers": servers, "group.id": "soak-ends", "isolation.level": "read_uncommitted"})
    try:
        return [client.get_watermark_offsets(TopicPartition(topic, n), 10.0)[1] for n in range(PARTITIONS)]
    finally:
        client.close()


def left(url: str, topic: str) -> int:
    with brokerkit.connect(url) as broker:
        return broker.depth(topic, "copy")


def shake(target: Target, workers: Workers, reader: Reader) -> None:
    """Faults, as long as there is work; two of them hit a node, a third and two thirds through."""
    assert target.local is not None
    chance = random.Random(SEED)
    nodes_at = [reader.messages // 3, 2 * reader.messages // 3]
    give_up = time.monotonic() + 2400
    while reader.different < 0.97 * reader.messages:
        assert time.monotonic() < give_up, f"only {reader.different} came out: {workers.faults}"
        time.sleep(chance.uniform(*EVERY))
        if nodes_at and reader.different > nodes_at[0]:
            nodes_at.pop(0)
            node = chance.randrange(3)
            target.local.kill(node)
            time.sleep(chance.uniform(1.0, 4.0))
            target.local.restart(node)
            workers.faults.append(f"killed node {node + 1}")
            continue
        slot = chance.choice(SLOTS)
        what = chance.choice(["kill", "kill", "freeze", "add"]) if workers.faults else "kill"
        if what == "kill":
            workers.kill(slot)
        elif what == "freeze":
            workers.freeze(slot, SESSION + chance.uniform(1.0, 3.0))
        else:
            workers.add("slot-4", chance.uniform(3.0, 6.0))


def written(number: int) -> bytes:
    return b"%d.".ljust(64, b"x") % number


def fill(servers: str, topic: str, messages: int) -> None:
    """Numbers, once each: an idempotent client that never sends again by itself."""
    producer = Producer(
        {"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 5, "message.timeout.ms": 300_000}
    )
    began = time.monotonic()
    for number in range(messages):
        body = written(number)
        while True:
            try:
                producer.produce(topic, body, key=b"%d" % number, headers=[("brokerkit-id", b"n-%d" % number)])
                break
            except BufferError:
                producer.poll(0.05)
        if number % 500 == 0:
            producer.poll(0)
            early = number / RATE - (time.monotonic() - began)
            if early > 0:
                time.sleep(early)
    assert producer.flush(300) == 0
