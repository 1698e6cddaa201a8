"""Processes that the tests kill: `python actors.py produce|consume|copy|fork FILE …`.

Each writes a line per fact to standard output, in one write, so that a killed process's last line is whole.
"""

from __future__ import annotations

import os
import sys
import time

from brokerkit_sqlite.driver import SqliteDriver
from brokerkit_sqlite.settings import SqliteSettings

from brokerkit.driver import Confirmed, Nack, Subscription
from brokerkit.errors import BrokerkitError
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message
from brokerkit.plugins import Url

LEASE = 0.5


class Silent:
    def assigned(self, positions):
        return {}

    def __getattr__(self, name):
        return lambda *details: None


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def open_driver(file: str) -> SqliteDriver:
    return SqliteDriver(Url("sqlite", "", f"/{file}"), SqliteSettings(lease_seconds=LEASE))


def produce(file: str, name: str, count: str, batch: str, guarantee: str) -> None:
    """Sends ids `name-0` … and says `ok ID` for each confirmed one."""
    driver = open_driver(file)
    sent: list[str] = []

    def outcomes(found):
        for outcome in found:
            if isinstance(outcome, Confirmed):
                for id in sent[outcome.first : outcome.last + 1]:
                    say("ok", id)

    sender = driver.sender("orders", Guarantee(guarantee), outcomes, Silent())
    for first in range(0, int(count), int(batch)):
        messages = [Message(b"x" * 100, id=f"{name}-{first + index}") for index in range(int(batch))]
        sent += [message.id for message in messages]
        sender.send(messages)
    say("done")


def consume(file: str, subscription: str, batch: str, how: str = "") -> None:
    """Says `got ID ATTEMPT`, acks, says `acked ID END`. `nack`: gives every seventh back once."""
    driver = open_driver(file)
    ids: dict[object, str] = {}

    def settled(settlements):
        for tokens, end, _ in settlements:
            for token in tokens:
                say("acked", ids.pop(token), end)

    receiver = driver.receiver(["orders"], Subscription(subscription), Guarantee.AT_LEAST_ONCE, settled, Silent())
    say("ready")
    while True:
        nacks = []
        acks = []
        for received in receiver.receive(int(batch), 1.0):
            say("got", received.id, received.attempt)
            if how == "nack" and received.attempt == 1 and received.native[0] % 7 == 0:
                nacks.append(Nack(received.token))
                ids[received.token] = f"given-back-{received.id}"
            else:
                acks.append(received.token)
                ids[received.token] = received.id
        receiver.settle(acks, nacks)


def copy(file: str, batch: str) -> None:
    """Moves every message from orders to bills in transactions."""
    driver = open_driver(file)
    transactor = driver.transactor(["orders"], Subscription("main"), instance="copier")
    say("ready")
    while True:
        transactor.begin()
        received = transactor.receive(int(batch), 0.2)
        for one in received:
            transactor.send("bills", Message(one.body, id=one.id))
        transactor.settle([one.token for one in received])
        say("commit")
        try:
            transactor.commit()
        except BrokerkitError as error:
            say("failed", type(error).__name__)
            transactor.abort()


def fork(file: str) -> None:
    """Sends in the parent while children inherit the connection, lose it and exit in the ordinary way."""
    import threading

    driver = open_driver(file)
    confirmed: list[int] = []
    sender = driver.sender(
        "orders",
        Guarantee.AT_LEAST_ONCE,
        lambda found: confirmed.extend(one.last - one.first + 1 for one in found),
        Silent(),
    )
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            sender.send([Message(b"x" * 500) for _ in range(50)])

    thread = threading.Thread(target=send)
    thread.start()
    for _ in range(30):
        time.sleep(0.005)
        child = os.fork()
        if child == 0:
            try:
                sender.send([Message(b"from the child")])
            except BrokerkitError:
                sender.close(1.0)
                driver.close(1.0)
                del sender, driver
                sys.exit(0)  # with finalizers, unlike os._exit
            os._exit(9)
        _, status = os.waitpid(child, 0)
        say("child", status)
    stop.set()
    thread.join(10.0)
    say("confirmed", sum(confirmed))


if __name__ == "__main__":
    {"produce": produce, "consume": consume, "copy": copy, "fork": fork}[sys.argv[1]](*sys.argv[2:])
