"""Sending: batches of ten by several threads, and each entry's own end told from the answer."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from brokerkit.driver import Cause, Confirmed, Outcome, Outcomes, Position, Refused, Sender, SenderEvents, Unknown
from brokerkit.errors import ConnectionLost
from brokerkit.guarantees import Guarantee
from brokerkit.message import Message
from brokerkit_sqs.batches import MOST, Batches
from brokerkit_sqs.clients import Clients
from brokerkit_sqs.encoding import Unfit, encoded
from brokerkit_sqs.errors import FAILURES, Failure, answered
from brokerkit_sqs.settings import SqsSettings
from brokerkit_sqs.topology import Route

LONGEST_DELAY = 900
_MOST_QUEUED = 20_000
"""Messages that wait for a thread; the layer has its own bound, except at most once."""


class _Item(NamedTuple):
    number: int
    message: Message
    delay: int


class _Entry(NamedTuple):
    number: int
    wire: dict[str, Any]
    size: int


class SqsSender(Sender):
    """One session. Requests have no connection to lose: an outage ends calls, not the session."""

    def __init__(
        self,
        clients: Clients,
        settings: SqsSettings,
        topic: str,
        route: Route,
        guarantee: Guarantee,
        outcomes: Outcomes,
        events: SenderEvents,
    ) -> None:
        self._topic = topic
        self._route = route
        self._client = clients.sns if route.fan_out else clients.calls
        self._failures = clients.failures
        self._tells_all = guarantee is not Guarantee.AT_MOST_ONCE
        self._outcomes = outcomes
        self._events = events
        self._next = 0
        self._over = False
        self._trouble = False
        self._lock = threading.Lock()
        self._batches: Batches[_Item] = Batches("sender", settings.parallel, settings.linger, self._deliver)

    def send(self, messages: Sequence[Message], delay: float = 0.0) -> int:
        if self._over:
            raise ConnectionLost("this sender's session is over")
        taken = min(len(messages), max(0, _MOST_QUEUED - len(self._batches)))
        seconds = math.ceil(delay)
        first = self._next
        self._next += taken
        self._batches.put([_Item(first + place, messages[place], seconds) for place in range(taken)])
        return taken

    def close(self, timeout: float) -> None:
        self._over = True
        left = self._batches.close(timeout)
        self._report(
            [
                Refused(item.number, item.number, Cause.CLOSED, "the sender was closed before it was sent", retry=True)
                for item in left
            ]
        )

    # ------------------------------------------------------------ on the sender's threads

    def _deliver(self, items: Sequence[_Item]) -> None:
        outcomes: list[Outcome] = []
        entries: list[_Entry] = []
        try:
            for item in items:
                try:
                    entries.append(self._entry(item))
                except Unfit as error:
                    outcomes.append(Refused(item.number, item.number, error.cause, str(error)))
            for chunk in self._chunks(entries):
                outcomes += self._call(chunk)
        except Exception as error:  # a defect must not leave a message without its end
            told = {outcome.first for outcome in outcomes}
            why = f"{type(error).__name__}: {error}"
            outcomes += [Unknown(i.number, i.number, Cause.INVALID, why, False) for i in items if i.number not in told]
        self._report(outcomes)

    def _entry(self, item: _Item) -> _Entry:
        text, attributes, size = encoded(item.message, self._route.limit, binary=not self._route.fan_out)
        wire: dict[str, Any] = {"Id": str(item.number), "MessageAttributes": attributes}
        if self._route.fan_out:
            if item.delay:
                raise Unfit(Cause.INVALID, "SNS cannot delay a message: leave delay out, or send later")
            wire["Message"] = text
        else:
            if item.delay > LONGEST_DELAY:
                raise Unfit(
                    Cause.INVALID, f"SQS delays a message by {LONGEST_DELAY} s at most, {item.delay} were asked for"
                )
            wire["MessageBody"] = text
            if item.delay:
                wire["DelaySeconds"] = item.delay
        return _Entry(item.number, wire, size)

    def _chunks(self, entries: Sequence[_Entry]) -> Iterator[list[_Entry]]:
        """As many as one call takes, by number and by summed size."""
        chunk: list[_Entry] = []
        size = 0
        for entry in entries:
            if chunk and (len(chunk) == MOST or size + entry.size > self._route.batch_limit):
                yield chunk
                chunk, size = [], 0
            chunk.append(entry)
            size += entry.size
        if chunk:
            yield chunk

    def _call(self, entries: Sequence[_Entry]) -> list[Outcome]:
        try:
            answer = self._send([entry.wire for entry in entries])
        except FAILURES as error:
            found = self._failures.of(error)
            if found.cause in (Cause.INVALID, Cause.TOO_LARGE) and len(entries) > 1:
                # One of them is to blame for all; alone, each gets an answer of its own.
                return [outcome for entry in entries for outcome in self._call([entry])]
            self._ill(found)
            return [_failed(entry.number, found) for entry in entries]
        self._well()
        return self._answered(entries, answer)

    def _send(self, wires: list[dict[str, Any]]) -> Any:
        if self._route.fan_out:
            return self._client.publish_batch(TopicArn=self._route.target, PublishBatchRequestEntries=wires)
        return self._client.send_message_batch(QueueUrl=self._route.target, Entries=wires)

    def _answered(self, entries: Sequence[_Entry], answer: Any) -> list[Outcome]:
        """Each entry's end, by its Id, from an answer that may have failed in part."""
        stored = {some["Id"]: some.get("MessageId", "") for some in answer.get("Successful", ())}
        failed = {some["Id"]: some for some in answer.get("Failed", ())}
        topic, lane = self._topic, self._route.name
        outcomes: list[Outcome] = []
        first = last = -1
        positions: list[Position] = []
        for entry in entries:
            number = entry.number
            id = entry.wire["Id"]
            if id in stored:
                if number != last + 1 and positions:
                    outcomes.append(Confirmed(first, last, positions))
                    positions = []
                if not positions:
                    first = number
                last = number
                positions.append(Position(topic, lane, stored[id]))
            elif id in failed:
                some = failed[id]
                by_us = bool(some.get("SenderFault", False))
                found = answered(str(some.get("Code", "")), str(some.get("Message", "")), by_us=by_us)
                outcomes.append(_failed(number, found))
            else:
                outcomes.append(Unknown(number, number, Cause.NACKED, "the answer does not mention it"))
        if positions:
            outcomes.append(Confirmed(first, last, positions))
        return outcomes

    def _report(self, outcomes: list[Outcome]) -> None:
        if not self._tells_all:
            outcomes = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        if outcomes:
            self._outcomes(outcomes)

    def _ill(self, found: Failure) -> None:
        with self._lock:
            told, self._trouble = self._trouble, self._trouble or found.outage
        if found.outage and not told:
            self._events.trouble(found.detail)

    def _well(self) -> None:
        if self._trouble:
            with self._lock:
                told, self._trouble = self._trouble, False
            if told:
                self._events.recovered()


def _failed(number: int, found: Failure) -> Outcome:
    if found.certain:
        return Refused(number, number, found.cause, found.detail, found.retry)
    return Unknown(number, number, found.cause, found.detail, found.retry)
