"""The admin client's end, whoever drops it; no broker runs here."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import pytest
from brokerkit_kafka.admin import Admin
from confluent_kafka.admin import AdminClient

from brokerkit.errors import ConnectionLost

NOBODY = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}

DROPPED = """
import gc, time
from brokerkit_kafka.admin import Admin
from brokerkit.errors import ConnectionLost

collected = []
def question(client):
    future = client.describe_cluster(request_timeout=1.0)
    future.add_done_callback(lambda _: collected.append(gc.collect()))
    return future

def drop():
    admin = Admin({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})
    try:
        admin.ask("asking", 0.2, question)
    except ConnectionLost as lost:
        admin.lost = lost  # a cycle: the traceback's frames hold the admin and its client
    MORE

gc.disable()
drop()
deadline = time.monotonic() + 10
while not collected and time.monotonic() < deadline:
    time.sleep(0.05)
Admin({"bootstrap.servers": "127.0.0.1:1"}).close()
print("collected", len(collected))
"""


@pytest.mark.parametrize("more", ["admin.close()", "admin._connected().describe_cluster(request_timeout=1.0)"])
def test_garbage_collected_in_the_clients_own_thread_does_not_abort(more: str) -> None:
    """CPython collects in whichever thread allocates: seen ending a whole test run."""
    ended = subprocess.run(
        [sys.executable, "-c", DROPPED.replace("MORE", more)], capture_output=True, text=True, timeout=30
    )
    assert (ended.returncode, ended.stdout) == (0, "collected 1\n"), ended.stderr


def test_closing_ends_what_another_thread_asks() -> None:
    admin = Admin(NOBODY)
    asked = threading.Event()

    def question(client: AdminClient) -> Future[object]:
        future: Future[object] = client.describe_cluster(request_timeout=9.0)
        asked.set()
        return future

    lost: list[ConnectionLost] = []

    def ask() -> None:
        with pytest.raises(ConnectionLost) as caught:
            admin.ask("asking", 9.0, question)
        lost.append(caught.value)

    other = threading.Thread(target=ask)
    other.start()
    assert asked.wait(5)
    began = time.monotonic()
    admin.close()
    other.join(5)
    assert lost
    assert time.monotonic() - began < 2
