"""Answers that no emulator gives, from a server written for the test, through the whole of gRPC and brokerkit."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from brokerkit_pubsub.link import (
    AcknowledgeRequest,
    GetSubscriptionRequest,
    GetTopicRequest,
    ModifyAckDeadlineRequest,
    PublishRequest,
    PublishResponse,
    PullRequest,
    PullResponse,
    Subscription,
    Topic,
)
from google.protobuf import any_pb2, empty_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

import brokerkit
from brokerkit.errors import AccessRefused, SendRefused, SendUnknown

REQUESTS = {
    "GetTopic": GetTopicRequest,
    "GetSubscription": GetSubscriptionRequest,
    "Publish": PublishRequest,
    "Pull": PullRequest,
    "Acknowledge": AcknowledgeRequest,
    "ModifyAckDeadline": ModifyAckDeadlineRequest,
}


class Service(grpc.GenericRpcHandler):
    """`script[method]`: what the next calls come to, a status code or a function of request and context."""

    def __init__(self) -> None:
        self.script: dict[str, deque[Any]] = {method: deque() for method in REQUESTS}
        self.asked: list[tuple[str, Any]] = []
        self.waiting: deque[tuple[str, str]] = deque()
        """Ack id and message id of what the next pull hands out."""
        self.exactly_once = False
        self._lock = threading.Lock()

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            with self._lock:
                self.asked.append((method, request))
                told = self.script[method].popleft() if self.script[method] else None
            if isinstance(told, grpc.StatusCode):
                context.abort(told, f"scripted {told.name}")
            return told(request, context) if told is not None else getattr(self, f"_{method.lower()}")(request)

        return grpc.unary_unary_rpc_method_handler(
            answer, REQUESTS[method].FromString, lambda message: message.SerializeToString()
        )

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.asked if name == method]

    def _gettopic(self, request: Any) -> Any:
        return Topic(name=request.topic)

    def _getsubscription(self, request: Any) -> Any:
        return Subscription(
            name=request.subscription, ack_deadline_seconds=10, enable_exactly_once_delivery=self.exactly_once
        )

    def _publish(self, request: Any) -> Any:
        return PublishResponse(message_ids=[str(number) for number, _ in enumerate(request.messages)])

    def _pull(self, request: Any) -> Any:
        answer = PullResponse()
        give_up = time.monotonic() + 0.2
        while not self.waiting and time.monotonic() < give_up:
            time.sleep(0.01)
        while self.waiting and len(answer.received_messages) < request.max_messages:
            ack_id, message_id = self.waiting.popleft()
            one = answer.received_messages.add()
            one.ack_id, one.message.message_id, one.message.data = ack_id, message_id, b"x"
        return answer

    def _acknowledge(self, request: Any) -> Any:
        return empty_pb2.Empty()

    def _modifyackdeadline(self, request: Any) -> Any:
        return empty_pb2.Empty()


def failing(**reasons: str) -> Callable[[Any, grpc.ServicerContext], None]:
    """As exactly-once delivery answers: by ack id."""

    def answer(_: Any, context: grpc.ServicerContext) -> None:
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason="EXACTLY_ONCE_ACKID_FAILURE", metadata=reasons))
        status = status_pb2.Status(
            code=grpc.StatusCode.FAILED_PRECONDITION.value[0], message="some failed", details=[detail]
        )
        context.abort_with_status(rpc_status.to_status(status))

    return answer


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def broker(service: Service) -> Iterator[brokerkit.Broker]:
    server = grpc.server(ThreadPoolExecutor(8), handlers=[service])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with brokerkit.connect(f"pubsub://scripted?emulator_host=127.0.0.1:{port}") as connected:
        yield connected
    server.stop(None).wait(5)


def until(true: Callable[[], bool], timeout: float = 15.0) -> bool:
    give_up = time.monotonic() + timeout
    while not true():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED],
    ids=lambda code: code.name,
)
def test_a_send_without_a_true_answer_is_sent_again_with_its_id(service, broker, code):
    service.script["Publish"] += [code, code]
    with broker.producer("orders") as producer:
        receipt = producer.send(b"x", id="evt-1")
        assert receipt.result(15)
        assert receipt.attempts == 3
    ids = [request.messages[0].attributes["brokerkit-id"] for request in service.requests("Publish")]
    assert ids == ["evt-1"] * 3


def test_a_send_that_never_had_a_true_answer_ends_unknown(service, broker):
    service.script["Publish"] += [grpc.StatusCode.UNAVAILABLE] * 1000
    with broker.producer("orders", delivery_timeout=1.0) as producer:
        with pytest.raises(SendUnknown):
            producer.send(b"x").result(15)


def test_a_refusal_after_an_attempt_without_an_answer_leaves_the_send_unknown(service, broker):
    service.script["Publish"] += [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT]
    with broker.producer("orders") as producer:
        with pytest.raises(SendUnknown):
            producer.send(b"x").result(15)


def test_a_refusal_is_told_by_its_cause(service, broker):
    service.script["Publish"] += [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND]
    with broker.producer("orders") as producer:
        for cause in ("access", "topic_missing"):
            with pytest.raises(SendRefused) as refused:
                producer.send(b"x").result(15)
            assert refused.value.cause == cause


def test_each_ack_of_exactly_once_delivery_ends_as_the_service_says(service, broker):
    service.exactly_once = True
    service.waiting += [("a1", "m1"), ("a2", "m2"), ("a3", "m3")]
    service.script["Acknowledge"].append(
        failing(a2="PERMANENT_FAILURE_INVALID_ACK_ID", a3="TRANSIENT_FAILURE_UNORDERED_ACK_ID")
    )
    with broker.consumer("orders", subscription="billing") as consumer:
        held: dict[str, brokerkit.Delivery] = {}
        assert until(lambda: held.update({d.id: d for d in consumer.receive(10, timeout=1)}) or len(held) == 3)
        for delivery in held.values():
            delivery.ack()
        assert consumer.flush(10) == 0
        assert {id: delivery.state for id, delivery in held.items()} == {
            "m1": "settled",
            "m2": "lost",
            "m3": "settled",
        }
    assert sorted(id for request in service.requests("Acknowledge") for id in request.ack_ids).count("a3") == 2


def test_a_lost_lease_of_exactly_once_delivery_is_told_to_the_handler(service, broker):
    service.exactly_once = True
    service.waiting.append(("a1", "m1"))
    service.script["ModifyAckDeadline"].append(failing(a1="PERMANENT_FAILURE_INVALID_ACK_ID"))
    events: list[str] = []
    with broker.consumer("orders", subscription="billing", on_event=lambda e: events.append(str(e.kind))) as consumer:
        [delivery] = consumer.receive(1, timeout=10)
        assert until(lambda: delivery.lease.lost)
        assert until(lambda: "lease_lost" in events)


def test_a_message_that_comes_again_although_acked_is_a_delivery_of_its_own(service, broker):
    service.waiting += [("a1", "m1")]
    with broker.consumer("orders", subscription="billing") as consumer:
        [first] = consumer.receive(1, timeout=10)
        first.ack()
        assert consumer.flush(10) == 0
        service.waiting += [("a1", "m1")]
        [again] = consumer.receive(1, timeout=10)
        assert (again.id, again.id_source, first.state) == ("m1", "native", "settled")
        again.ack()
        assert consumer.flush(10) == 0
        assert again.state == "settled"


def test_one_message_handed_out_twice_at_once_is_settled_twice(service, broker):
    service.waiting += [("a1", "m1"), ("a1", "m1")]
    with broker.consumer("orders", subscription="billing") as consumer:
        found: list[brokerkit.Delivery] = []
        assert until(lambda: found.extend(consumer.receive(2, timeout=1)) or len(found) == 2)
        for delivery in found:
            delivery.ack()
        assert consumer.flush(10) == 0
        assert [delivery.state for delivery in found] == ["settled", "settled"]


def test_a_consumer_that_may_not_look_at_its_subscription_consumes_all_the_same(service, broker):
    service.script["GetSubscription"].append(grpc.StatusCode.PERMISSION_DENIED)
    service.waiting.append(("a1", "m1"))
    with broker.consumer("orders", subscription="billing") as consumer:
        [delivery] = consumer.receive(1, timeout=10)
        assert delivery.lease.seconds == 10
        delivery.ack()
        assert consumer.flush(10) == 0
    assert "may not be read" in " ".join(broker.claims().properties.notes)


def test_a_consumer_that_may_not_pull_is_told_by_name(service, broker):
    service.script["Pull"].append(grpc.StatusCode.PERMISSION_DENIED)
    with broker.consumer("orders", subscription="billing") as consumer:
        with pytest.raises(AccessRefused, match="scripted"):
            until(lambda: bool(consumer.receive(1, timeout=0.1)))
