"""brokerkit plugin: Amazon SQS, standard queues. `sqs://eu-west-1`, or `sqs://host:9324/eu-west-1`, by boto3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from brokerkit.plugins import Plugin, Url, hookimpl
from brokerkit_sqs.settings import SqsSettings

if TYPE_CHECKING:
    from brokerkit.driver import Codec, Driver
    from brokerkit.local.contract import LocalBroker


def _open(url: Url, settings: SqsSettings) -> Driver:
    from brokerkit_sqs.driver import SqsDriver

    return SqsDriver(url, settings)


def _codec() -> Codec:
    from brokerkit_sqs.wire import SqsCodec

    return SqsCodec()


def _local() -> Mapping[str, Callable[[], LocalBroker]]:
    from brokerkit_sqs.local import brokers

    return brokers()


@hookimpl
def brokerkit_plugins() -> Sequence[Plugin]:
    checks = "brokerkit_sqs.checks"
    return [Plugin("sqs", ("sqs",), SqsSettings, _open, codec=_codec, local=_local, checks=checks)]
