"""How much is left between two offsets, when not every offset there is a message."""

from __future__ import annotations

import time
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

_FEW = 2000
"""Offsets up to which it is worth counting: transaction markers, aborted records and holes stand out then."""

_SECONDS = 5.0

Gaps = dict[tuple[str, int], tuple[int, int]]
"""Topic and partition: from which offset, up to which."""


def counted(config: dict[str, Any], gaps: Gaps) -> int:
    """The messages that a read_committed reader finds in the gaps; and every offset behind the last stable one, where
    a transaction that is open may become visible. What was not reached in time counts in full, as do wide gaps."""
    left = {place: gap for place, gap in gaps.items() if gap[1] > gap[0]}
    found = 0
    width = sum(end - begin for begin, end in left.values())
    if not 0 < width <= _FEW:
        return width
    reader = Consumer({**config, "enable.partition.eof": True, "statistics.interval.ms": 0})
    deadline = time.monotonic() + _SECONDS
    try:
        reader.assign([TopicPartition(topic, number, begin) for (topic, number), (begin, _) in left.items()])
        while left and time.monotonic() < deadline:
            for native in reader.consume(500, 0.05):
                place = (str(native.topic()), int(native.partition() or 0))
                if place not in left:
                    continue
                offset = int(native.offset() or 0)
                begin, end = left[place]
                error = native.error()
                if error is None:
                    found += offset < end
                    left[place] = (offset + 1, end)
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.pop(place)
                    found += max(0, end - max(begin, offset))
                    continue
                if offset + 1 >= end:
                    left.pop(place)
    except KafkaException:
        return found + sum(end - begin for begin, end in left.values())
    finally:
        reader.close()
    return found + sum(end - begin for begin, end in left.values())
