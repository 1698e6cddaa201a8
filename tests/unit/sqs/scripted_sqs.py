"""An SQS that does what a test tells it to."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from botocore.exceptions import ClientError
from brokerkit_sqs.errors import Failures

from brokerkit.driver import End, Outcome, Settlement


def refusal(code: str, status: int = 400, message: str = "because") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Call"
    )


class Scripted:
    """boto3's client, and the driver's `Clients` around it. `answers[call]` is called with the arguments of each call;
    what it returns is the answer, what it raises is raised, and None means that all goes well."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.answers: dict[str, Callable[[Mapping[str, Any]], Any]] = {}
        self.waiting: list[dict[str, Any]] = []
        self.failures = Failures()
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    @property
    def calls(self) -> Scripted:
        return self

    polls = sns = calls

    def fail(self, call: str, *errors: Exception) -> None:
        """The next calls raise these, one each; after them all goes well."""
        left = iter(errors)

        def answer(_: Mapping[str, Any]) -> None:
            error = next(left, None)
            if error is not None:
                raise error

        self.answers[call] = answer

    def batches(self, call: str) -> list[Sequence[Mapping[str, Any]]]:
        return [arguments["Entries"] for name, arguments in self.asked if name == call]

    def arrive(self, id: str, handle: str, count: int = 1, body: str = "body") -> None:
        with self._lock:
            attributes = {"ApproximateReceiveCount": str(count)}
            self.waiting.append({"MessageId": id, "ReceiptHandle": handle, "Body": body, "Attributes": attributes})

    def __getattr__(self, call: str) -> Callable[..., Any]:
        def made(**arguments: Any) -> Any:
            with self._lock:
                self.asked.append((call, arguments))
            answer = self.answers.get(call)
            told = answer(arguments) if answer is not None else None
            if told is not None:
                return told
            return self._receive(arguments) if call == "receive_message" else self._all_well(arguments)

        return made

    def _all_well(self, arguments: Mapping[str, Any]) -> Any:
        done = [{"Id": one["Id"], "MessageId": f"m-{next(self._numbers)}"} for one in arguments.get("Entries", ())]
        return {"Successful": done, "Failed": []}

    def _receive(self, arguments: Mapping[str, Any]) -> Any:
        with self._lock:
            most = arguments["MaxNumberOfMessages"]
            taken, self.waiting = self.waiting[:most], self.waiting[most:]
        if not taken:
            time.sleep(0.005)  # what a long poll would wait
        return {"Messages": taken}


class Told:
    """Records what a session tells the layer."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.ends: dict[Any, End] = {}
        self.lost: list[Any] = []
        self.news: list[str] = []

    def take(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes += outcomes

    def settled(self, settlements: Sequence[Settlement]) -> None:
        for settlement in settlements:
            self.ends.update(dict.fromkeys(settlement.tokens, settlement.end))

    def lease_lost(self, tokens: Sequence[Any], reason: str) -> None:
        self.lost += tokens

    def trouble(self, reason: str) -> None:
        self.news.append(f"trouble: {reason}")

    def recovered(self) -> None:
        self.news.append("recovered")


def until(true: Callable[[], object], timeout: float = 5.0) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.002)
