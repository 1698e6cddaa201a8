"""Receiving: several polls in parallel, leases that are renewed by the layer, deletes in batches.

There is no connection whose end would end this session: SQS knows leases alone. What is acked is deleted while its
lease lasts, however often that has to be asked; after that nothing is sent any more, for a late delete could take
the message from whoever has it now.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from brokerkit.driver import End, Nack, Receiver, ReceiverEvents, Reject, Settled, Settlement, Token, Traits
from brokerkit.errors import BrokerkitError, Closed, NotSupported
from brokerkit.events import backoffs
from brokerkit.guarantees import Guarantee
from brokerkit_sqs.batches import MOST, Batches
from brokerkit_sqs.clients import Clients
from brokerkit_sqs.encoding import SqsIncoming
from brokerkit_sqs.errors import FAILURES, STALE, Failure, answered, translated
from brokerkit_sqs.settings import LEASE_CAP, SqsSettings
from brokerkit_sqs.topology import Queue

_OVER = "its lease is over"
_UNANSWERED = "the consumer was closed before SQS answered"
_SWEEP = 0.5
_MARGIN = 1.0
"""Seconds by which SQS may take a lease to be over before we do: it began when the answer left, not when it came."""
_PAUSE = 0.2
"""Seconds before a delete or a nack that got no answer is asked again."""
_TYPICAL = 64 * 1024
"""Bytes that a message is taken to have before one was seen."""


def clock() -> float:
    """Seconds that go on while the machine sleeps, as SQS's do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class _Change(NamedTuple):
    """A new visibility timeout: a nack, or a renewal."""

    incoming: SqsIncoming
    seconds: int
    renews: bool


class _Polled:
    """A queue and the polls of it that are under way."""

    __slots__ = ("polls", "queue", "resume_at", "target", "waits")

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.polls = 0
        self.target = 1
        self.resume_at = 0.0
        self.waits = backoffs()


class SqsReceiver(Receiver):
    def __init__(
        self,
        clients: Clients,
        settings: SqsSettings,
        queues: Sequence[Queue],
        traits: Traits,
        guarantee: Guarantee,
        settled: Settled,
        events: ReceiverEvents,
        prefetch: int,
        prefetch_bytes: int,
    ) -> None:
        self.traits = traits
        self._clients = clients
        self._settings = settings
        self._queues = [_Polled(queue) for queue in queues]
        self._drops_repeated = guarantee is Guarantee.AT_MOST_ONCE
        self._settled = settled
        self._events = events
        self._prefetch_bytes = prefetch_bytes
        self._arrived = threading.Condition()
        self._buffer: deque[SqsIncoming] = deque()
        self._held: dict[str, SqsIncoming] = {}
        """By SQS's message id, whose newest handing-over is the one that counts."""
        self._promised = 0
        self._typical = float(_TYPICAL)
        self._sweep_at = 0.0
        self._offset = math.inf
        self._failure: BrokerkitError | None = None
        self._closed = False
        self._trouble = False
        threads = settings.parallel
        self._polls: Batches[tuple[_Polled, int]] = Batches("poll", threads * len(queues), 0.0, self._poll, most=1)
        self._deletes: Batches[SqsIncoming] = Batches("delete", threads, settings.linger, self._delete)
        # A renewal must not overtake the nack that follows it: one message's changes share one thread.
        self._changes: list[Batches[_Change]] = [
            Batches("lease", 1, settings.linger, self._change) for _ in range(min(threads, 1 + prefetch // 1000))
        ]

    # ------------------------------------------------------------ what the layer calls

    def receive(self, max_messages: int, timeout: float) -> Sequence[SqsIncoming]:
        self._sweep()
        with self._arrived:
            self._check()
            self._launch(max_messages)
            if max_messages and not self._buffer:
                self._arrived.wait(timeout)
                self._check()
            return [self._buffer.popleft() for _ in range(min(max_messages, len(self._buffer)))]

    def settle(self, acks: Sequence[Token] = (), nacks: Sequence[Nack] = (), rejects: Sequence[Reject] = ()) -> None:
        if rejects:
            raise NotSupported("SQS has no call that moves a message to the dead letters")
        with self._arrived:
            for token in acks:
                token.state = "acking"
            for nack in nacks:
                nack.token.state = "nacking"
        self._deletes.put(acks)
        for nack in nacks:
            self._put_change(_Change(nack.token, min(math.ceil(nack.delay), LEASE_CAP), renews=False))

    def extend(self, tokens: Sequence[Token], seconds: float) -> None:
        """Where answers are slow it is asked again before they came: what waits for its turn waits once."""
        wanted = math.ceil(seconds)
        for token in tokens:
            if token.renewal < wanted:
                token.renewal = wanted
                self._put_change(_Change(token, wanted, renews=True))

    def flush(self, timeout: float) -> None:
        """Only hurries: every answer comes by itself."""
        self._deletes.hurry()
        for changes in self._changes:
            changes.hurry()

    def close(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
            buffered = list(self._buffer)
            self._buffer.clear()
        self._give_back(buffered)
        self._polls.close(max(0.0, deadline - time.monotonic() - 0.3 * timeout))
        left = self._deletes.close(max(0.05, deadline - time.monotonic()))
        for changes in self._changes:
            left += [change.incoming for change in changes.close(max(0.05, deadline - time.monotonic()))]
        self._end(left, End.UNKNOWN, _UNANSWERED)

    # ------------------------------------------------------------ polling

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise Closed("this receiver is closed")

    def _launch(self, demand: int) -> None:
        """Starts polls for what is asked for and not under way, one at a time while there is nothing to get."""
        wanted = demand - len(self._buffer) - self._promised
        room = (
            (self._prefetch_bytes - sum(some.size for some in self._held.values())) / self._typical if wanted > 0 else 0
        )
        now = time.monotonic()
        for polled in self._queues:
            while wanted > 0 and polled.polls < polled.target and now >= polled.resume_at:
                if self._promised and self._promised + MOST > room:
                    return
                most = min(MOST, wanted)
                polled.polls += 1
                self._promised += most
                wanted -= most
                self._polls.put([(polled, most)])
        self._queues.append(self._queues.pop(0))  # small demands reach every queue in turn

    def _poll(self, jobs: Sequence[tuple[_Polled, int]]) -> None:
        ((polled, most),) = jobs
        found: Sequence[Any] = ()
        wait = 0 if self._closed else self._settings.wait_seconds
        began = clock()
        try:
            answer = self._clients.polls.receive_message(
                QueueUrl=polled.queue.url,
                MaxNumberOfMessages=most,
                WaitTimeSeconds=wait,
                VisibilityTimeout=self._settings.lease_seconds,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
            )
            found = answer.get("Messages") or ()
            received = self._leased_at(answer, began) if wait else began
            self._well(polled)
        except FAILURES as error:
            received = began
            self._poll_failed(polled, error)
        except Exception as error:  # a defect of ours or the client's ends the consumer, and says so
            received = began
            self._failure = translated(error, f"receiving from {polled.queue.name!r}")
        with self._arrived:
            polled.polls -= 1
            self._promised -= most
            polled.target = min(self._settings.parallel, 2 * polled.target) if found else max(1, polled.target // 2)
            lapsed: list[SqsIncoming] = []
            fresh = [some for raw in found if (some := self._take(polled.queue, raw, received, lapsed)) is not None]
            if not self._closed:
                self._buffer.extend(fresh)
            if fresh or self._failure is not None:
                self._arrived.notify_all()  # after an empty poll, the next one may wait for the next call
        self._lose(lapsed, _OVER)
        if self._closed:
            self._give_back(fresh)

    def _take(self, queue: Queue, raw: Any, received: float, lapsed: list[SqsIncoming]) -> SqsIncoming | None:
        """The delivery to hand out. A message that comes again while its lease lasts is not handed out again, and only
        its newest handle is kept; one that comes again at the end of its lease is lost to whoever had it."""
        lease = self._settings.lease_seconds
        id = str(raw.get("MessageId", ""))
        known = self._held.get(id)
        if known is not None and known.state in ("held", "acking") and not self._closed:
            if known.deadline - received > min(_MARGIN, lease / 8):
                known.handle = raw["ReceiptHandle"]
                return None
            lapsed.append(known)
        incoming = SqsIncoming(raw, queue.topic, queue, received + lease, received + LEASE_CAP)
        self._typical += (incoming.size + 256 - self._typical) * 0.05
        if self._drops_repeated and (incoming.attempt or 1) > 1:
            incoming.state = "dropped"
            self._deletes.put([incoming])
            return None
        self._held[id] = incoming
        return incoming

    def _leased_at(self, answer: Any, began: float) -> float:
        """When the leases of a long poll's answer began: a little before it came. What it has lain about while this
        process stood still is told by the server's own time stamps, which are whole seconds, against the quickest
        answer seen. (A poll that does not wait need not guess: they began after it was asked.)"""
        now = clock()
        try:
            date = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        except (KeyError, ValueError):
            late = 0.0
        else:
            self._offset = min(self._offset, now - date.timestamp())
            late = max(0.0, now - date.timestamp() - self._offset - 1.0)
        return max(began, now - late - min(_MARGIN, self._settings.lease_seconds / 8))

    def _poll_failed(self, polled: _Polled, error: Exception) -> None:
        found = self._clients.failures.of(error)
        if not found.retry:
            self._failure = translated(error, f"receiving from {polled.queue.name!r}")
            return
        with self._arrived:
            polled.resume_at = time.monotonic() + next(polled.waits)
        self._ill(found)

    # ------------------------------------------------------------ leases

    def _lane(self, change: _Change) -> Batches[_Change]:
        return self._changes[hash(change.incoming) // 16 % len(self._changes)]

    def _put_change(self, change: _Change) -> None:
        self._lane(change).put([change])

    def _give_back(self, incoming: Sequence[SqsIncoming]) -> None:
        for some in incoming:
            some.state = "returning"
            self._put_change(_Change(some, 0, renews=False))

    def _sweep(self) -> None:
        """Tells of leases that are over, and renews those that the layer has not seen yet."""
        now = clock()
        if now < self._sweep_at:
            return
        self._sweep_at = now + _SWEEP
        renewed = self._settings.lease_seconds * 2 / 3
        with self._arrived:
            over = [some for some in self._held.values() if some.deadline <= now and some.state == "held"]
            waiting = [some for some in self._buffer if some.deadline > now and some.deadline - now < renewed]
            if over:
                self._buffer = deque(some for some in self._buffer if some.deadline > now)
        self._lose(over, _OVER)
        self.extend(waiting, self._settings.lease_seconds)

    def _change(self, changes: Sequence[_Change]) -> None:
        now = clock()
        live: list[_Change] = []
        over: list[SqsIncoming] = []
        for change in changes:
            incoming = change.incoming
            if change.renews:
                incoming.renewal = 0
                if incoming.state != "held":
                    continue
            if incoming.deadline <= now or (change.renews and incoming.cap - now < 1.0):
                over.append(incoming)
                continue
            if change.renews:
                change = change._replace(seconds=min(change.seconds, int(incoming.cap - now)))
            live.append(change)
        self._lose([some for some in over if some.state == "held"], _OVER)
        self._end([some for some in over if some.state != "held"], End.LOST, _OVER)
        for queue, some in _by_queue(live, lambda change: change.incoming.queue):
            self._change_in(queue, some)

    def _change_in(self, queue: Queue, changes: Sequence[_Change]) -> None:
        began = clock()
        try:
            answer = self._clients.calls.change_message_visibility_batch(
                QueueUrl=queue.url,
                Entries=[
                    {"Id": str(place), "ReceiptHandle": some.incoming.handle, "VisibilityTimeout": some.seconds}
                    for place, some in enumerate(changes)
                ],
            )
        except Exception as error:
            self._not_changed(changes, error)
            return
        self._well()
        failed = {some["Id"]: some for some in answer.get("Failed", ())}
        done: list[SqsIncoming] = []
        lost: list[SqsIncoming] = []
        again: list[_Change] = []
        for place, change in enumerate(changes):
            refused = failed.get(str(place))
            if refused is None:
                if change.renews:
                    change.incoming.deadline = began + change.seconds
                else:
                    done.append(change.incoming)
            elif refused.get("Code") in STALE:
                lost.append(change.incoming)
            elif not change.renews:  # the keeper renews again by itself
                again.append(change)
        self._end(done, End.SETTLED)
        self._lose([some for some in lost if some.state == "held"], "SQS says that its lease is over")
        self._end([some for some in lost if some.state != "held"], End.LOST, "SQS says that its lease is over")
        self._change_again(again)

    def _change_again(self, changes: Sequence[_Change]) -> None:
        if changes:
            self._again(self._lane(changes[0]), changes, [change.incoming for change in changes])

    def _not_changed(self, changes: Sequence[_Change], error: Exception) -> None:
        found = self._clients.failures.of(error)
        self._ill(found)
        given_back = [change for change in changes if not change.renews]
        if found.retry:
            self._change_again(given_back)
        else:
            self._end([change.incoming for change in given_back], End.UNKNOWN, found.detail)

    # ------------------------------------------------------------ deleting

    def _delete(self, batch: Sequence[SqsIncoming]) -> None:
        now = clock()
        live = [some for some in batch if some.deadline > now]
        self._end([some for some in batch if some.deadline <= now], End.LOST, _OVER)
        for queue, some in _by_queue(live, lambda incoming: incoming.queue):
            self._delete_in(queue, some)

    def _delete_in(self, queue: Queue, batch: Sequence[SqsIncoming]) -> None:
        handles = [incoming.handle for incoming in batch]
        try:
            answer = self._clients.calls.delete_message_batch(
                QueueUrl=queue.url,
                Entries=[{"Id": str(place), "ReceiptHandle": handle} for place, handle in enumerate(handles)],
            )
        except Exception as error:
            found = self._clients.failures.of(error)
            self._ill(found)
            if found.retry:  # a delete is the same however often it is asked for
                self._again(self._deletes, batch, batch)
            else:
                self._end(batch, End.UNKNOWN, found.detail)
            return
        self._well()
        now = clock()
        failed = {some["Id"]: some for some in answer.get("Failed", ())}
        done: list[SqsIncoming] = []
        lost: list[SqsIncoming] = []
        late: list[SqsIncoming] = []
        again: list[SqsIncoming] = []
        for place, incoming in enumerate(batch):
            refused = failed.get(str(place))
            if refused is not None:
                code = str(refused.get("Code", ""))
                by_us = bool(refused.get("SenderFault", False))
                retry = answered(code, "", by_us=by_us).retry and code not in STALE
                (again if retry else lost).append(incoming)
            elif incoming.handle != handles[place]:
                again.append(incoming)  # received again meanwhile: only the newest handle deletes for certain
            else:
                (late if incoming.deadline <= now else done).append(incoming)
        self._end(done, End.SETTLED)
        self._end(lost, End.LOST, "SQS says that its lease is over")
        self._end(late, End.UNKNOWN, "SQS answered after the lease was over")
        self._again(self._deletes, again, again)

    def _again(self, batches: Batches[Any], items: Sequence[Any], incoming: Sequence[SqsIncoming]) -> None:
        """Asks again in a moment, on the thread that asked."""
        if not items:
            return
        if batches.closing.wait(_PAUSE):
            self._end(incoming, End.UNKNOWN, _UNANSWERED)
        else:
            batches.put_back(items)

    # ------------------------------------------------------------ ends

    def _end(self, incoming: Sequence[SqsIncoming], end: End, detail: str = "") -> None:
        if not incoming:
            return
        told = []
        with self._arrived:
            for some in incoming:
                if some.state in ("acking", "nacking"):
                    told.append(some)
                some.state = "over"
                if end is End.LOST:
                    some.deadline = 0.0  # no late ack may reach whoever has it now
                if self._held.get(some.message_id) is some:
                    del self._held[some.message_id]
        if told:
            self._settled([Settlement(told, end, detail)])

    def _lose(self, incoming: Sequence[SqsIncoming], reason: str) -> None:
        if incoming:
            self._end(incoming, End.LOST)
            self._events.lease_lost(incoming, reason)

    def _ill(self, found: Failure) -> None:
        with self._arrived:
            told, self._trouble = self._trouble, self._trouble or found.outage
        if found.outage and not told:
            self._events.trouble(found.detail)

    def _well(self, polled: _Polled | None = None) -> None:
        if polled is not None and polled.resume_at:
            with self._arrived:
                polled.resume_at, polled.waits = 0.0, backoffs()
        if self._trouble:
            with self._arrived:
                told, self._trouble = self._trouble, False
            if told:
                self._events.recovered()


def _by_queue(items: Sequence[Any], queue_of: Callable[[Any], Queue]) -> list[tuple[Queue, list[Any]]]:
    """Most consumers have one queue; a call speaks to one."""
    groups: dict[str, tuple[Queue, list[Any]]] = {}
    for item in items:
        queue = queue_of(item)
        groups.setdefault(queue.url, (queue, []))[1].append(item)
    return list(groups.values())
