"""Raw boto3 at its best practice: what brokerkit's SQS figures are held against.

One client shared by eight threads, batches of ten each way, long polls, and a call back for each confirmed message.
`same_wire` writes and reads the message that brokerkit's plugin writes: an id made for each, the time of the send, both
as attributes; otherwise a bare body. `one_by_one` is the naive way: one thread, one message a call.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

THREADS = 8
BATCH = 10


def send(url: str, queue: str, count: int, size: int, *, same_wire: bool = True, one_by_one: bool = False) -> float:
    """Messages a second until every one is confirmed."""
    client = _client(url)
    place = client.get_queue_url(QueueName=queue)["QueueUrl"]
    body = "x" * size
    prefix, next_id = os.urandom(12).hex() + "-", itertools.count().__next__
    confirmed: list[str] = []
    on_confirm = confirmed.append
    numbers = iter(range(0, count, 1 if one_by_one else BATCH))
    lock = threading.Lock()

    def message(number: int) -> dict[str, Any]:
        if not same_wire:
            return {"Id": str(number), "MessageBody": body}
        attributes = {
            "brokerkit-id": {"DataType": "String", "StringValue": f"{prefix}{next_id():x}"},
            "brokerkit-published-at": {"DataType": "Number", "StringValue": str(time.time_ns() // 1_000_000)},
        }
        return {"Id": str(number), "MessageBody": body, "MessageAttributes": attributes}

    def work() -> None:
        while True:
            with lock:
                if next(numbers, None) is None:
                    return
            if one_by_one:
                alone = message(0)
                del alone["Id"]
                confirmed.append(client.send_message(QueueUrl=place, **alone)["MessageId"])
                continue
            answer = client.send_message_batch(QueueUrl=place, Entries=[message(n) for n in range(BATCH)])
            if answer.get("Failed"):
                raise RuntimeError("a message was not taken")
            for entry in answer["Successful"]:
                on_confirm(entry["MessageId"])

    seconds = _timed(work, 1 if one_by_one else THREADS)
    if len(confirmed) != count:
        raise RuntimeError(f"{len(confirmed)} of {count} were confirmed")
    return count / seconds


def receive(url: str, queue: str, count: int, *, same_wire: bool = True, one_by_one: bool = False) -> float:
    """Messages a second received and deleted from a queue that holds at least `count`."""
    client = _client(url)
    place = client.get_queue_url(QueueName=queue)["QueueUrl"]
    wanted: dict[str, Any] = {"MessageAttributeNames": ["All"]} if same_wire else {}
    done = 0
    ended: list[float] = []
    lock = threading.Lock()
    last: list[Any] = []

    def read(message: Any) -> None:
        attributes = message["MessageAttributes"]
        values = {name: value["StringValue"] for name, value in attributes.items()}
        at, id = int(values.pop("brokerkit-published-at")), values.pop("brokerkit-id")
        last[:] = [message["Body"].encode(), id, at, values]

    def work() -> None:
        nonlocal done
        while done < count:
            answer = client.receive_message(
                QueueUrl=place, MaxNumberOfMessages=1 if one_by_one else BATCH, WaitTimeSeconds=1, **wanted
            )
            messages = answer.get("Messages") or []
            for message in messages if same_wire else ():
                read(message)
            if not messages:
                continue
            if one_by_one:
                client.delete_message(QueueUrl=place, ReceiptHandle=messages[0]["ReceiptHandle"])
            else:
                entries = [{"Id": str(n), "ReceiptHandle": one["ReceiptHandle"]} for n, one in enumerate(messages)]
                if client.delete_message_batch(QueueUrl=place, Entries=entries).get("Failed"):
                    raise RuntimeError("a delete was refused")
            with lock:
                done += len(messages)
                if done >= count:
                    ended.append(time.perf_counter())  # the others' last polls find nothing, and do not count

    began = time.perf_counter()
    _timed(work, 1 if one_by_one else THREADS)
    return count / (ended[0] - began)


def _timed(work: Callable[[], None], threads: int) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for job in [pool.submit(work) for _ in range(threads)]:
            job.result(300)
    return time.perf_counter() - began


def _client(url: str) -> Any:
    """Of a brokerkit URL with a host."""
    parts = urlsplit(url)
    return boto3.client(
        "sqs",
        endpoint_url=f"http://{parts.hostname}:{parts.port}",
        region_name=parts.path.strip("/"),
        aws_access_key_id=parts.username,
        aws_secret_access_key=parts.password,
        config=Config(max_pool_connections=2 * THREADS),
    )
