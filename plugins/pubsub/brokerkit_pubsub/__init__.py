"""brokerkit plugin: Google Pub/Sub. `pubsub://project`, by google-cloud-pubsub."""

from collections.abc import Callable, Mapping, Sequence

from brokerkit.driver import Codec, Driver
from brokerkit.local.contract import LocalBroker
from brokerkit.plugins import Plugin, Url, hookimpl
from brokerkit_pubsub.settings import PubsubSettings


def _open(url: Url, settings: PubsubSettings) -> Driver:
    from brokerkit_pubsub.driver import PubsubDriver

    return PubsubDriver(url, settings)


def _codec() -> Codec:
    from brokerkit_pubsub.wire import PubsubCodec

    return PubsubCodec()


def _local() -> Mapping[str, Callable[[], LocalBroker]]:
    from brokerkit_pubsub.local import brokers

    return brokers()


@hookimpl
def brokerkit_plugins() -> Sequence[Plugin]:
    checks = "brokerkit_pubsub.checks"
    return [Plugin("pubsub", ("pubsub",), PubsubSettings, _open, codec=_codec, local=_local, checks=checks)]
