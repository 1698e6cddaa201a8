"""Other people's programs find the local brokers by what `brokerkit env` prints, on a machine that has nothing.

PATH holds a shell and nothing else: no Go, Java, Cloud SDK, AWS command line or Docker.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from brokerkit.local.cache import cache_folder

from .conftest import client, marked, within

pytestmark = pytest.mark.integration

BOTO3 = """
import boto3

sqs = boto3.client("sqs")
queue = sqs.create_queue(QueueName="plain")["QueueUrl"]
sqs.send_message(QueueUrl=queue, MessageBody="hello")
[message] = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=10)["Messages"]
sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
print(message["Body"], queue)
"""
GOOGLE = """
import os
from google.cloud import pubsub_v1

project = os.environ["GOOGLE_CLOUD_PROJECT"]
topic, reader = f"projects/{project}/topics/plain", f"projects/{project}/subscriptions/plain-reader"
with pubsub_v1.PublisherClient() as publisher, pubsub_v1.SubscriberClient() as subscriber:
    publisher.create_topic(name=topic)
    subscriber.create_subscription(name=reader, topic=topic)
    publisher.publish(topic, b"hello").result(20)
    found = []
    while not found:
        found = subscriber.pull(subscription=reader, max_messages=1, timeout=20).received_messages
    subscriber.acknowledge(subscription=reader, ack_ids=[found[0].ack_id])
    print(found[0].message.data.decode())
"""
OF_OTHERS = ("AWS_", "BROKERKIT_", "CLOUDSDK_", "DOCKER_", "GOOGLE_", "JAVA_", "KAFKA_", "PUBSUB_", "ELASTICMQ_")
READY = re.compile(r"^(\S+)  ready  (\S+)  (.+), \d+\.\d s$", re.MULTILINE)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A user's environment without anything of a cloud's or a broker's, and with a shell alone on PATH.

    Only recipes: a Cloud SDK in its usual folder would be found without PATH too.
    """
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "env"):
        (tools / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_OTHERS)}
    made = {**kept, "PATH": str(tools), "BROKERKIT_PROVIDER": "recipe", "BROKERKIT_CACHE": str(cache_folder())}
    made["BROKERKIT_STATE"] = str(tmp_path / "state")
    yield made
    command(made, "down")
    assert within(10, lambda: not marked(made["BROKERKIT_STATE"]))


def command(env: Mapping[str, str], *arguments: str, timeout: float = 110) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "brokerkit.cli", *arguments], env=env, capture_output=True, text=True, timeout=timeout
    )


def up(env: Mapping[str, str], *targets: str, timeout: float = 110) -> dict[str, tuple[str, str]]:
    """URL and provenance of each target, detached."""
    ended = command(env, "up", "--detach", *targets, timeout=timeout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return {name: (url, rest) for name, url, rest in READY.findall(ended.stdout)}


def as_a_user(env: Mapping[str, str], program: str) -> str:
    """What the program prints in a shell that took over what `brokerkit env` printed."""
    script = 'exports="$("$PYTHON" -m brokerkit.cli env)" && eval "$exports" && exec "$PYTHON" -c "$PROGRAM"'
    ended = subprocess.run(
        ["sh", "-c", script],
        env={**env, "PYTHON": sys.executable, "PROGRAM": program},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_three_brokers_serve_with_nothing_installed_but_the_python_packages(bare: dict[str, str]):
    found = up(bare, "kafka", "sqs", "pubsub")
    assert list(found) == ["kafka", "sqs", "pubsub"]
    assert all(said.endswith("recipe") for _, said in found.values()), found
    assert client("kafka", found["kafka"][0]).answers(10)
    body, queue = as_a_user(bare, BOTO3).split()
    assert (body, queue.startswith("http://127.0.0.1:")) == ("hello", True)
    assert as_a_user(bare, GOOGLE) == "hello\n"


def test_plain_boto3_talks_to_moto_as_well(bare: dict[str, str]):
    up(bare, "sqs:moto")
    assert as_a_user(bare, BOTO3).split()[0] == "hello"


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_the_first_start_fetches_all_it_needs_into_an_empty_cache(bare: dict[str, str], tmp_path: Path):
    bare["BROKERKIT_CACHE"] = str(tmp_path / "cache")
    found = up(bare, "kafka", "sqs", "pubsub", timeout=1500)
    assert all(said.endswith("recipe") for _, said in found.values()), found
    assert client("kafka", found["kafka"][0]).answers(10)
    assert as_a_user(bare, BOTO3).split()[0] == "hello"
    assert as_a_user(bare, GOOGLE) == "hello\n"
