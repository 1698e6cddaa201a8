"""A driver that does what a test tells it, so that the layer's answers to outcomes and events can be seen."""

import threading
import time
from collections import deque

from brokerkit.driver import (
    Capabilities,
    Confirmed,
    Driver,
    End,
    Incoming,
    Receiver,
    Sender,
    Settlement,
    Traits,
)
from brokerkit.errors import Closed, ConnectionLost
from brokerkit.guarantees import Claims, Guarantee


class ScriptedIncoming(Incoming):
    def __init__(self, token, body=b"x", lane=0, attempt=1, headers=None):
        self.token, self.body, self.lane, self.attempt = token, body, lane, attempt
        self.all_headers = headers or {}
        self.id, self.id_source, self.key, self.content_type = f"id-{token}", "producer", None, None
        self.published_at, self.position, self.topic, self.native, self.size = 0, None, "topic", None, len(body)


class ScriptedSender(Sender):
    def __init__(self, driver, topic, outcomes, events):
        self.driver, self.topic, self.outcomes, self.events = driver, topic, outcomes, events
        self.taken = []
        self.over = False
        self.closed = False

    def send(self, messages, delay=0.0):
        if self.over:
            raise ConnectionLost("scripted")
        took = list(messages)[: self.driver.capacity]
        first = len(self.taken)
        self.taken += took
        self.driver.sent += [(self.topic, message) for message in took]
        if took and self.driver.confirm_at_once:
            self.outcomes([Confirmed(first, first + len(took) - 1)])
        return len(took)

    def end(self, *outcomes):
        self.over = True
        self.outcomes(outcomes)
        self.events.disconnected("scripted")

    def close(self, timeout):
        self.closed = True


class ScriptedReceiver(Receiver):
    def __init__(self, driver, settled, events):
        self.driver, self.settled, self.events = driver, settled, events
        self.traits = driver.traits
        self.queue = deque()
        self.calls = []
        self.acks, self.nacks, self.rejects, self.extended = [], [], [], []
        self.over = False
        self.closed = False
        self.inbox = driver.inbox

    def receive(self, max_messages, timeout):
        if self.closed:
            raise Closed("scripted")
        if self.over:
            raise ConnectionLost("scripted")
        while self.calls:
            self.calls.pop(0)()
        taken = [self.queue.popleft() for _ in range(min(max_messages, len(self.queue)))]
        if not taken:
            time.sleep(min(timeout, 0.005))
        return taken

    def settle(self, acks=(), nacks=(), rejects=()):
        if self.over:
            raise ConnectionLost("scripted")
        self.acks += acks
        self.nacks += nacks
        self.rejects += rejects
        tokens = [*acks, *(n.token for n in nacks), *(r.token for r in rejects)]
        if self.driver.answer is not None:
            self.settled([Settlement(tokens, self.driver.answer)])

    def extend(self, tokens, seconds):
        self.extended += tokens

    def close(self, timeout):
        self.closed = True


class ScriptedDriver(Driver):
    def __init__(self, traits=None, guarantees=frozenset(Guarantee), delayed_send=False, blocking=False):
        self.blocking = blocking
        self.capabilities = Capabilities(guarantees, guarantees, delayed_send=delayed_send)
        self.traits = traits or Traits()
        self.senders, self.receivers, self.sent, self.inbox = [], [], [], []
        self.capacity = 10**9
        self.confirm_at_once = False
        self.refuse_to_open = 0
        self.answer = End.SETTLED
        self.opened = threading.Condition()

    def sender(self, topic, guarantee, outcomes, events, **options):
        return self._open(self.senders, ScriptedSender(self, topic, outcomes, events))

    def receiver(self, topics, subscription, guarantee, settled, events, **options):
        return self._open(self.receivers, ScriptedReceiver(self, settled, events))

    def _open(self, all_of_them, opened):
        if self.refuse_to_open:
            self.refuse_to_open -= 1
            raise ConnectionLost("scripted: refused")
        with self.opened:
            all_of_them.append(opened)
            self.opened.notify_all()
        return opened

    def wait_for(self, all_of_them, count):
        with self.opened:
            assert self.opened.wait_for(lambda: len(all_of_them) >= count, 5)
        return all_of_them[count - 1]

    def claims(self, producer, consumer):
        return Claims()

    def declare(self, topic, subscriptions, native):
        pass

    def delete(self, topic, subscription):
        pass

    def depth(self, topic, subscription):
        return 0

    def describe(self):
        return {}

    def close(self, timeout):
        pass


def until(condition, timeout=5.0):
    """Waits for a condition; the failure shows the condition's last value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {value!r}"
        time.sleep(0.002)
    return value
