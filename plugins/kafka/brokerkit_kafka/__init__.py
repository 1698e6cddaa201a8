"""brokerkit plugin: Kafka. `kafka://user:password@host:9092,host:9092`, by confluent-kafka."""

from collections.abc import Callable, Mapping, Sequence

from brokerkit.driver import Codec, Driver
from brokerkit.local.contract import LocalBroker
from brokerkit.plugins import Plugin, Url, hookimpl
from brokerkit_kafka.settings import KafkaSettings


def _open(url: Url, settings: KafkaSettings) -> Driver:
    from brokerkit_kafka.driver import KafkaDriver

    return KafkaDriver(url, settings)


def _codec() -> Codec:
    from brokerkit_kafka.wire import KafkaCodec

    return KafkaCodec()


def _local() -> Mapping[str, Callable[[], LocalBroker]]:
    from brokerkit_kafka.local import brokers

    return brokers()


@hookimpl
def brokerkit_plugins() -> Sequence[Plugin]:
    return [Plugin("kafka", ("kafka",), KafkaSettings, _open, codec=_codec, local=_local)]
