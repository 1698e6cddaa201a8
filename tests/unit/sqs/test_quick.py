"""The quick calls ask and answer as boto3's own do, over a socket to a server that does what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from botocore.parsers import ResponseParserError
from brokerkit_sqs.quick import QuickClient

KEY, SECRET, REGION = "the-key", "the-secret", "eu-west-1"
QUEUE = "http://localhost/1/work--billing"
ENTRIES: list[dict[str, Any]] = [
    {
        "Id": "7",
        "MessageBody": "fünfzig $ \U0001f4b6",
        "DelaySeconds": 3,
        "MessageAttributes": {
            "brokerkit-id": {"DataType": "String", "StringValue": "a-1"},
            "seal": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
        },
    }
]
ASKED: Mapping[str, dict[str, Any]] = {
    "send_message_batch": {"QueueUrl": QUEUE, "Entries": ENTRIES},
    "receive_message": {"QueueUrl": QUEUE, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"]},
    "delete_message_batch": {"QueueUrl": QUEUE, "Entries": [{"Id": "0", "ReceiptHandle": "r"}]},
    "change_message_visibility_batch": {
        "QueueUrl": QUEUE,
        "Entries": [{"Id": "0", "ReceiptHandle": "r", "VisibilityTimeout": 30}],
    },
}
RECEIVED = {
    "Messages": [
        {
            "MessageId": "m-1",
            "ReceiptHandle": "r-1",
            "Body": "body",
            "Attributes": {"ApproximateReceiveCount": "2"},
            "MessageAttributes": {
                "seal": {"DataType": "Binary", "BinaryValue": "AP8="},
                "brokerkit-id": {"DataType": "String", "StringValue": "a-1"},
            },
        }
    ]
}
PARTLY = {
    "Successful": [{"Id": "0", "MessageId": "m-0"}],
    "Failed": [{"Id": "1", "SenderFault": True, "Code": "ReceiptHandleIsInvalid", "Message": "no"}],
}


class Request(NamedTuple):
    url: str
    headers: Mapping[str, str]
    body: bytes


class Server:
    """Answers each request with `status`, `headers` and `body`, and keeps it."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = b"{}"
        self.hangs = threading.Event()
        self.requests: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                url = f"http://{self.headers['Host']}{self.path}"
                server.requests.append(Request(url, {n.lower(): v for n, v in self.headers.items()}, body))
                if server.hangs.is_set():
                    self.close_connection = True
                    server.done.wait(10)
                    return
                self.send_response(server.status)
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(server.body)))
                self.end_headers()
                self.wfile.write(server.body)

            def log_message(self, *_: Any) -> None:
                pass

        self.done = threading.Event()
        self._served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._served.daemon_threads = True
        self._thread = threading.Thread(target=self._served.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._served.server_port}"

    def close(self) -> None:
        self.done.set()
        self._served.shutdown()
        self._served.server_close()
        self._thread.join(5)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Iterator[QuickClient]:
    config = Config(
        retries={"total_max_attempts": 1, "mode": "standard"}, read_timeout=2.0, user_agent_extra="tested/1"
    )
    made = QuickClient(
        boto3.Session(KEY, SECRET, region_name=REGION).client("sqs", endpoint_url=server.url, config=config)
    )
    yield made
    made.close()


def both(server: Server, client: QuickClient, call: str) -> tuple[Any, Any]:
    """What boto3 answers or raises, and what the quick call does."""
    ends = []
    for made in (getattr(client, call), getattr(client, call)):
        try:
            ends.append(made(**ASKED[call]))
        except Exception as error:
            ends.append(error)
    assert len(server.requests) == 2
    return ends[0], ends[1]


@pytest.mark.parametrize("call", ASKED)
def test_it_asks_as_boto3_does(server: Server, client: QuickClient, call: str) -> None:
    both(server, client, call)
    whole, quick = server.requests
    assert quick.url == whole.url
    assert json.loads(quick.body) == json.loads(whole.body)
    of_a_call = {"authorization", "x-amz-date", "content-length", "amz-sdk-invocation-id", "amz-sdk-request"}
    assert {n: v for n, v in quick.headers.items() if n not in of_a_call} == {
        n: v for n, v in whole.headers.items() if n not in of_a_call
    }
    assert "tested/1" in quick.headers["user-agent"]
    assert "amz-sdk-invocation-id" in whole.headers
    assert "amz-sdk-invocation-id" not in quick.headers, "both were made by boto3"


@pytest.mark.parametrize("call", ASKED)
def test_the_signature_is_that_of_what_came(server: Server, client: QuickClient, call: str) -> None:
    both(server, client, call)
    for request in server.requests:
        assert request.headers["authorization"].endswith(f"Signature={signature(request)}")
    forged = server.requests[1]._replace(body=b"{}")
    assert not forged.headers["authorization"].endswith(f"Signature={signature(forged)}")


def signature(request: Request) -> str:
    """Made anew, as the service does, from what was received."""
    signed = request.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    again = AWSRequest("POST", request.url, {name: request.headers[name] for name in signed}, request.body)
    again.context["timestamp"] = request.headers["x-amz-date"]
    signer = SigV4Auth(Credentials(KEY, SECRET), "sqs", REGION)
    return str(signer.signature(signer.string_to_sign(again, signer.canonical_request(again)), again))


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("send_message_batch", PARTLY),
        ("receive_message", RECEIVED),
        ("receive_message", {}),
        ("receive_message", {"Messages": None}),
        ("delete_message_batch", {"Successful": [{"Id": "0"}], "Failed": PARTLY["Failed"]}),
        ("change_message_visibility_batch", {"Successful": [], "Failed": None}),
    ],
)
def test_it_answers_as_boto3_does(server: Server, client: QuickClient, call: str, answer: Any) -> None:
    server.body = json.dumps(answer).encode()
    whole, quick = both(server, client, call)
    assert "date" in quick.pop("ResponseMetadata")["HTTPHeaders"]
    del whole["ResponseMetadata"]
    assert quick == whole


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (
            400,
            {"x-amzn-query-error": "AWS.SimpleQueueService.NonExistentQueue;Sender"},
            b'{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"it is gone"}',
        ),
        (403, {}, b'{"__type":"com.amazon.coral.service#AccessDeniedException","Message":"not you"}'),
        (503, {}, b"<html>try later</html>"),
        (500, {}, b""),
    ],
)
def test_it_is_refused_as_boto3_is(
    server: Server, client: QuickClient, status: int, headers: dict[str, str], body: bytes
) -> None:
    both(server, client, "delete_message_batch")
    server.requests.clear()
    server.status, server.headers, server.body = status, headers, body
    with pytest.raises(ClientError) as quick:
        client.delete_message_batch(**ASKED["delete_message_batch"])
    with pytest.raises(ClientError) as whole:
        client._client.delete_message_batch(**ASKED["delete_message_batch"])
    assert quick.value.response["Error"] == whole.value.response["Error"]
    assert quick.value.response["ResponseMetadata"]["HTTPStatusCode"] == status


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'"no"', b'{"Messages":[{"MessageAttributes":{"a":{"BinaryValue":"!"}}}]}']
)
def test_an_answer_that_cannot_be_read_says_so(server: Server, client: QuickClient, body: bytes) -> None:
    client.receive_message(**ASKED["receive_message"])
    server.body = body
    with pytest.raises(ResponseParserError, match="the answer to ReceiveMessage cannot be read"):
        client.receive_message(**ASKED["receive_message"])


def test_silence_and_absence_end_as_boto3s_do(server: Server, client: QuickClient) -> None:
    client.receive_message(**ASKED["receive_message"])
    server.hangs.set()
    with pytest.raises(ReadTimeoutError):
        client.receive_message(**ASKED["receive_message"])
    server.close()
    with pytest.raises(EndpointConnectionError):
        client.receive_message(**ASKED["receive_message"])


def test_a_function_of_lambda_hands_its_trace_on(
    server: Server, client: QuickClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.receive_message(**ASKED["receive_message"])
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "charge")
    for trace in ("Root=1", "Root=2"):
        monkeypatch.setenv("_X_AMZN_TRACE_ID", trace)
        client.receive_message(**ASKED["receive_message"])
        assert server.requests[-1].headers["x-amzn-trace-id"] == trace


def test_what_is_not_spoken_as_json_stays_boto3s(server: Server, client: QuickClient) -> None:
    def speak_otherwise(request: Any, **_: Any) -> None:
        request.headers.replace_header("Content-Type", "application/cbor")

    client.meta.events.register_first("before-sign.sqs", speak_otherwise)
    for _ in range(2):
        client.receive_message(**ASKED["receive_message"])
    assert all("amz-sdk-invocation-id" in request.headers for request in server.requests)


def test_many_threads_sign_each_their_own(server: Server, client: QuickClient) -> None:
    threads = [
        threading.Thread(target=lambda: [client.receive_message(**ASKED["receive_message"]) for _ in range(20)])
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(server.requests) == 120
    assert all(request.headers["authorization"].endswith(signature(request)) for request in server.requests)
