"""Quix Streams' exactly once from topic to topic. Run by the Python of `make peers`, where brokerkit is not."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from typing import Any

warnings.filterwarnings("ignore")

PATIENCE = 60.0


def copy(servers: str, topic: str, count: int, seconds: float) -> float:
    """Messages a second from the first to the last one processed: the last commit is not counted, to its favour.
    Bodies stay bytes, headers go with them, and its own settings of clients are kept."""
    from quixstreams import Application
    from quixstreams.models import TopicConfig

    times: list[float] = []
    note = times.append
    clock = time.perf_counter

    def processed(*_: Any) -> None:
        note(clock())

    with tempfile.TemporaryDirectory(prefix="brokerkit-bench-") as state:
        app = Application(
            broker_address=servers,
            consumer_group=f"quix-{os.urandom(6).hex()}",
            auto_offset_reset="earliest",
            processing_guarantee="exactly-once",
            commit_interval=seconds,
            on_message_processed=processed,
            loglevel="ERROR",
            state_dir=state,
        )
        source = app.topic(topic, value_deserializer="bytes", key_deserializer="bytes")
        out = app.topic(
            f"{topic}-quix",
            value_serializer="bytes",
            key_serializer="bytes",
            config=TopicConfig(num_partitions=4, replication_factor=1),
        )
        try:
            app.dataframe(source).to_topic(out)
            app.run(count=count, timeout=PATIENCE, collect=False)
        finally:
            _delete(servers, out.name)
    if len(times) < count:
        raise RuntimeError(f"only {len(times)} of {count} were processed")
    return (count - 1) / (times[count - 1] - times[0])


def _delete(servers: str, topic: str) -> None:
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": servers})
    for deleted in admin.delete_topics([topic]).values():
        deleted.result(PATIENCE)
