"""A loop after the confluent-kafka client's own transactional example (`examples/eos-transactions.py` there).

As there: one transaction after another, each ended by its number of messages, with the consumer's position and group
metadata of that moment; no callbacks for rebalances, no handling of errors. Other than there: a group instead of one
assigned partition, so that workers can share a topic; a transactional id per worker; a transaction also ends by time;
it goes on at the end of the input.
"""

from __future__ import annotations

import time

from confluent_kafka import Consumer, Producer

from benchmarks.fire.part import Part


def session(part: Part) -> None:
    with Consumer(
        {
            "bootstrap.servers": part.servers,
            "group.id": part.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": part.session_ms,
            "heartbeat.interval.ms": part.session_ms // 3,
        }
    ) as consumer:
        consumer.subscribe([part.topic])
        producer = Producer({"bootstrap.servers": part.servers, "transactional.id": f"example-{part.instance}"})
        producer.init_transactions()
        producer.begin_transaction()
        count = 0
        began = time.monotonic()
        while not part.stopping.is_set():
            producer.poll(0)
            message = consumer.poll(0.1)
            if message is not None and not message.error():
                count += 1
                part.handle()
                for out in part.outs:
                    producer.produce(out, message.value(), message.key(), headers=message.headers())
            if count >= part.most or (count and time.monotonic() > began + part.seconds):
                _commit(part, consumer, producer)
                producer.begin_transaction()
                count = 0
            if not count:
                began = time.monotonic()
        if count:
            _commit(part, consumer, producer)


def _commit(part: Part, consumer: Consumer, producer: Producer) -> None:
    producer.send_offsets_to_transaction(consumer.position(consumer.assignment()), consumer.consumer_group_metadata())
    producer.commit_transaction()
    part.committed()


if __name__ == "__main__":
    Part().play(session)
