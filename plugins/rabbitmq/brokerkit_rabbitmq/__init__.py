"""brokerkit plugin: RabbitMQ with manual acks, publisher confirms and quorum queues."""

from collections.abc import Callable, Mapping, Sequence

from brokerkit.driver import Codec, Driver
from brokerkit.local.contract import LocalBroker
from brokerkit.plugins import Plugin, Url, hookimpl
from brokerkit_rabbitmq.settings import RabbitSettings


def _open(url: Url, settings: RabbitSettings) -> Driver:
    from brokerkit_rabbitmq.driver import RabbitDriver

    return RabbitDriver(url, settings)


def _codec() -> Codec:
    from brokerkit_rabbitmq.wire import AmqpCodec

    return AmqpCodec()


def _local() -> Mapping[str, Callable[[], LocalBroker]]:
    from brokerkit_rabbitmq.local import brokers

    return brokers()


@hookimpl
def brokerkit_plugins() -> Sequence[Plugin]:
    return [Plugin("rabbitmq", ("rabbitmq", "amqp", "amqps"), RabbitSettings, _open, codec=_codec, local=_local)]
