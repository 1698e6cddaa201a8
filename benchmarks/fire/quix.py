"""Quix Streams, exactly once: an application that copies a topic, with its defaults but for what the check asks for.

Its transactional id is given per worker: the default is random, and a killed worker's transaction would then keep
readers waiting until it times out.
"""

from __future__ import annotations

import tempfile
from typing import Any

from quixstreams import Application
from quixstreams.checkpointing import Checkpoint

from benchmarks.fire.part import Part

BYTES: dict[str, Any] = {"value_deserializer": "bytes", "key_deserializer": "bytes"}
AS_BYTES: dict[str, Any] = {"value_serializer": "bytes", "key_serializer": "bytes"}


def session(part: Part) -> None:
    with tempfile.TemporaryDirectory(prefix="brokerkit-quix-") as folder:
        app = Application(
            broker_address=part.servers,
            consumer_group=part.group,
            auto_offset_reset="earliest",
            processing_guarantee="exactly-once",
            commit_interval=part.seconds,
            commit_every=part.most,
            state_dir=folder,
            auto_create_topics=False,
            loglevel="WARNING",
            consumer_extra_config={
                "session.timeout.ms": part.session_ms,
                "heartbeat.interval.ms": part.session_ms // 3,
            },
            producer_extra_config={"transactional.id": f"quix-{part.instance}"},
        )
        frame = app.dataframe(app.topic(part.topic, **BYTES))
        frame = frame.update(lambda value: part.handle())
        for out in part.outs:
            frame = frame.to_topic(app.topic(out, **AS_BYTES))
        part.on_stop = app.stop
        app.run()


def tell_commits(part: Part) -> None:
    """A commit of the application's is written down; it is left as it is."""
    commit = Checkpoint.commit

    def told(self: Any, **options: Any) -> None:
        commit(self, **options)
        part.committed()

    Checkpoint.commit = told


def main() -> None:
    part = Part()
    tell_commits(part)
    part.play(session)


if __name__ == "__main__":
    main()
