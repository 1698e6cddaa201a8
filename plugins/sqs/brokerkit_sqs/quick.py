"""The calls that every message takes part in, without what boto3 does around each of them.

Going through the service's model, there and back, takes more than half of such a call's time. Here its JSON is written
and read directly, and goes over the client's own HTTP session under the client's own signature. What belongs around it
(address, headers, how it is signed) is not made up here: boto3 makes the first call of each kind whole, and what it was
about to sign is what the next ones are made of. Were it to speak anything but JSON, it would go on making all of them.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple

from botocore.awsrequest import AWSRequest
from botocore.endpoint import convert_to_response_dict
from botocore.exceptions import ClientError
from botocore.handlers import add_recursion_detection_header
from botocore.parsers import ResponseParserError, create_parser

_JSON = "application/x-amz-json-1.0"


class _Template(NamedTuple):
    url: str
    headers: Mapping[str, str]
    context: Mapping[str, Any]


class QuickClient:
    """A client of boto3's for SQS, with its names, arguments, answers and errors. Safe from several threads."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._endpoint = client._endpoint
        self._signer = client._request_signer
        self._templates: dict[str, _Template] = {}
        client.meta.events.register("before-sign.sqs", self._about_to_sign)

    def send_message_batch(self, **arguments: Any) -> Any:
        return self._call("SendMessageBatch", self._client.send_message_batch, arguments)

    def receive_message(self, **arguments: Any) -> Any:
        return self._call("ReceiveMessage", self._client.receive_message, arguments)

    def delete_message_batch(self, **arguments: Any) -> Any:
        return self._call("DeleteMessageBatch", self._client.delete_message_batch, arguments)

    def change_message_visibility_batch(self, **arguments: Any) -> Any:
        return self._call("ChangeMessageVisibilityBatch", self._client.change_message_visibility_batch, arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def _about_to_sign(self, request: Any, operation_name: str, **_: Any) -> None:
        if operation_name not in self._templates and request.headers.get("Content-Type") == _JSON:
            self._templates[operation_name] = _Template(request.url, dict(request.headers), dict(request.context))

    def _call(self, operation: str, whole: Any, arguments: Mapping[str, Any]) -> Any:
        template = self._templates.get(operation)
        if template is None:
            return whole(**arguments)
        request = AWSRequest("POST", template.url, template.headers, json.dumps(arguments, default=_blob).encode())
        request.context.update(template.context)  # of its own: the signer notes its time there
        add_recursion_detection_header({"headers": request.headers})
        self._signer.sign(operation, request)
        response = self._endpoint.http_session.send(self._endpoint.prepare_request(request))
        if response.status_code >= 300:
            raise self._refusal(operation, response)
        try:
            answer = _read(response.content)
        except (ValueError, TypeError, AttributeError) as error:
            raise ResponseParserError(f"the answer to {operation} cannot be read: {error}") from None
        answer["ResponseMetadata"] = {"HTTPHeaders": response.headers}
        return answer

    def _refusal(self, operation: str, response: Any) -> ClientError:
        model = self._client.meta.service_model.operation_model(operation)
        return ClientError(
            create_parser("json").parse(convert_to_response_dict(response, model), model.output_shape), operation
        )


def _blob(value: Any) -> str:
    """What JSON has no form for: the bytes of a binary attribute."""
    return b64encode(value).decode()


def _read(content: bytes) -> dict[str, Any]:
    answer = {name: value for name, value in json.loads(content).items() if value is not None}
    for message in answer.get("Messages", ()):
        for attribute in message.get("MessageAttributes", {}).values():
            if "BinaryValue" in attribute:
                attribute["BinaryValue"] = b64decode(attribute["BinaryValue"], validate=True)
    return answer
