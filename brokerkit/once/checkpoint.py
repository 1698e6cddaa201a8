"""Checkpoints: how far a subscription's effects have come in each partition, one row a partition, written in the
transaction of the effects. Not a row a message: order says which messages are behind that place."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import closing
from typing import Any

from brokerkit.consumer import Delivery
from brokerkit.errors import PositionLost
from brokerkit.events import EventKind, Reporter
from brokerkit.message import Position
from brokerkit.once.stores.contract import Store

_READ = "select place from brokerkit_checkpoints where consumer = :consumer and lane = :lane and topic_id = :topic_id"
_MOVE = """\
update brokerkit_checkpoints set place = :next
where consumer = :consumer and lane = :lane and topic_id = :topic_id and place = :place and place < :next"""
# A topic that was made anew begins anew; whose row it was is of no interest any more.
_LOCK = """\
insert into brokerkit_checkpoints as mine (consumer, lane, topic_id, place) values (:consumer, :lane, :topic_id, :place)
on conflict (consumer, lane) do update set
    place = case when mine.topic_id = excluded.topic_id then mine.place else excluded.place end,
    topic_id = excluded.topic_id
returning place"""


class Checkpoint:
    """For partitions that are one consumer's at a time, and read in order.

    What a transaction takes in of a partition follows without a gap on the place where this consumer began or last
    committed. So when the place in the store is that one, all of it is new; when it is further on, somebody else, or a
    commit whose answer was lost, has done what lies before it; it is never further back.
    """

    def __init__(self, store: Store, url: str, name: Callable[[str], str], report: Reporter) -> None:
        """`name` says whose effects those of a topic are."""
        self._store = store
        self._url = url
        self._name = name
        self._report = report
        self._places: dict[Hashable, Position] = {}
        """Where each partition goes on that is this consumer's, or was."""
        self._moving: dict[Hashable, Position] = {}
        """The same once the transaction is committed."""

    def assigned(self, positions: Sequence[Position]) -> Mapping[Hashable, Position]:
        """Called with the broker's places, on the consumer's thread; answers with those of the store. A store that
        cannot be asked now is asked in the transaction: the broker is behind it, never ahead."""
        places: dict[Hashable, Position] = {_lane(place): place for place in positions}
        try:
            with closing(self._store.connect(self._url)) as connection:
                places = {lane: self._stored(connection, place) for lane, place in places.items()}
        except Exception as error:
            self._report(EventKind.TROUBLE, f"the checkpoints could not be read, the broker's places are used: {error}")
        self._places.update(places)
        return places

    def fresh(self, connection: Any, batch: Sequence[Delivery]) -> list[Delivery]:
        """Begins a transaction. What of the batch is not behind the checkpoints; from now on it is, if the transaction
        commits. Raises PositionLost when a checkpoint lies before what this consumer was given."""
        self._moving = {}
        found = {_lane(delivery.position): delivery.position for delivery in batch if delivery.position is not None}
        before: dict[Hashable, int] = {}
        if not found:
            self._store.begin(connection)
        for lane, last in sorted(found.items(), key=str):
            before[lane] = self._moved(connection, lane, last, begins=not before)
        return [
            delivery
            for delivery in batch
            if delivery.position is None or int(delivery.position.value) >= before[_lane(delivery.position)]
        ]

    def committed(self) -> None:
        self._places.update(self._moving)
        self._moving = {}

    def _moved(self, connection: Any, lane: Hashable, last: Position, *, begins: bool) -> int:
        """Moves a checkpoint behind `last`; where it was before. `begins`: the transaction begins with it."""
        began = self._places[lane]
        place, after = int(began.value), int(last.value) + 1
        values = self._values(began) | {"next": after}
        stored = place
        if begins:
            moved = self._store.begin_run(connection, _MOVE, values)
        else:
            moved = self._store.run(connection, _MOVE, values).rowcount
        if moved != 1:
            stored = int(self._store.run(connection, _LOCK, self._values(began)).fetchone()[0])
            if stored < place:
                raise PositionLost(
                    f"the checkpoint of {self._name(began.topic)!r} in partition {began.lane} is {stored}, behind "
                    f"{place}, from where this consumer was given messages: somebody set it back. Start the consumer "
                    "again, and it begins there"
                )
            if after > stored:
                self._store.run(connection, _MOVE, values | {"place": stored})
        self._moving[lane] = began._replace(value=max(after, stored))
        return stored

    def _stored(self, connection: Any, place: Position) -> Position:
        """The place that is in the store, or the one given where there is none."""
        row = self._store.run(connection, _READ, self._values(place)).fetchone()
        return place if row is None else place._replace(value=int(row[0]))

    def _values(self, place: Position) -> dict[str, Any]:
        return {
            "consumer": self._name(place.topic),
            "lane": str(place.lane),
            "topic_id": place.topic_id,
            "place": int(place.value),
        }


def _lane(place: Position) -> Hashable:
    """Topic and partition."""
    return place.topic, place.lane
