"""A subscription as two folders, in which a file's name is its state.

    TOPIC/SUBSCRIPTION/ready/DUE-PLACE.ATTEMPTS            to be handed out at DUE (ms), handed out ATTEMPTS times
    TOPIC/SUBSCRIPTION/leased/DUE-PLACE.ATTEMPTS.UNTIL     somebody's until UNTIL (ms)

Every change of state is one `rename` of the name as last seen. Of any number of processes that try the same one,
the file system lets one win, and tells the others: that is all the locking there is, and a process that is killed
between two renames leaves a state, not a mess.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from brokerkit.driver import Subscription
from brokerkit.message import Message


def now() -> int:
    """Wall clock in ms: the only one that several processes share across restarts."""
    return time.time_ns() // 1_000_000


class Entry(NamedTuple):
    """One message of a subscription, by its name."""

    due: int
    place: str
    attempts: int
    until: int | None = None

    @property
    def name(self) -> str:
        name = f"{self.due:015d}-{self.place}.{self.attempts}"
        return name if self.until is None else f"{name}.{self.until}"

    @staticmethod
    def parse(name: str) -> Entry:
        stem, attempts, *until = name.split(".")
        due, _, place = stem.partition("-")
        return Entry(int(due), place, int(attempts), int(until[0]) if until else None)


class Spool:
    """The two folders of one subscription."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ready = path / "ready"
        self.leased = path / "leased"

    def create(self, settings: Subscription) -> None:
        self.ready.mkdir(parents=True, exist_ok=True)
        self.leased.mkdir(exist_ok=True)
        draft = self.path / f"settings-{uuid.uuid4().hex}"
        write(draft, json.dumps(_declared(settings)).encode())
        try:
            os.link(draft, self.path / "settings")  # fails where somebody was first, unlike rename
        except FileExistsError:
            pass
        draft.unlink()
        for directory in (self.path, self.path.parent, self.path.parent.parent):
            sync(directory)

    def settings(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "settings").read_bytes())
        return found

    def put(self, content: Path, entry: Entry) -> None:
        """A hard link to the written file: one content, as many subscriptions as there are."""
        os.link(content, self.ready / entry.name)

    def waiting(self) -> Iterator[Entry]:
        """What may be handed out now, the oldest first."""
        moment = now()
        for name in sorted(os.listdir(self.ready)):
            entry = Entry.parse(name)
            if entry.due > moment:
                return
            yield entry

    def lease(self, entry: Entry, seconds: float) -> Entry | None:
        """The entry as ours, or None when somebody else was faster."""
        ours = entry._replace(attempts=entry.attempts + 1, until=now() + int(seconds * 1000))
        return ours if move(self.ready / entry.name, self.leased / ours.name) else None

    def renew(self, entry: Entry, seconds: float) -> Entry | None:
        """The entry with its lease renewed, or None when the lease was over and taken."""
        longer = entry._replace(until=now() + int(seconds * 1000))
        return longer if move(self.leased / entry.name, self.leased / longer.name) else None

    def give_back(self, entry: Entry, delay: float = 0.0, unstarted: bool = False) -> bool:
        free = entry._replace(until=None, attempts=entry.attempts - unstarted)
        if delay:
            free = free._replace(due=now() + int(delay * 1000))
        return move(self.leased / entry.name, self.ready / free.name)

    def done(self, entry: Entry) -> bool:
        """False: the lease was over and somebody else has the message."""
        try:
            os.unlink(self.leased / entry.name)
        except FileNotFoundError:
            return False
        return True

    def reap(self) -> None:
        """Takes leases back that nobody renewed. Every consumer does it; who is faster does not matter."""
        moment = now()
        for name in os.listdir(self.leased):
            entry = Entry.parse(name)
            if entry.until is not None and entry.until < moment:
                self.give_back(entry)

    def depth(self) -> int:
        return len(os.listdir(self.ready)) + len(os.listdir(self.leased))


def encode(message: Message) -> bytes:
    """One line of JSON, then the body."""
    head = {
        "id": message.id,
        "key": message.key,
        "content_type": message.content_type,
        "published_at": message.published_at,
        "text": {name: value for name, value in message.headers.items() if isinstance(value, str)},
        "bytes": {name: value.hex() for name, value in message.headers.items() if isinstance(value, bytes)},
    }
    return json.dumps(head).encode() + b"\n" + (message.body or b"")


def decode(content: bytes) -> Message:
    head, _, body = content.partition(b"\n")
    fields = json.loads(head)
    headers = {**fields["text"], **{name: bytes.fromhex(value) for name, value in fields["bytes"].items()}}
    return Message(body, fields["id"], fields["key"], None, fields["content_type"], fields["published_at"])._replace(
        headers=headers
    )


def write(path: Path, content: bytes) -> None:
    """The file with all its bytes on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(directory: Path) -> None:
    """The names in a directory, on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(old: Path, new: Path) -> bool:
    try:
        os.rename(old, new)
    except FileNotFoundError:
        return False
    return True


def difference(have: dict[str, Any], want: Subscription) -> str:
    """What a subscription that is there was declared with, where that is not what is asked for."""
    asked = _declared(want)
    return ", ".join(
        f"{name} is {have[name]!r}, asked for {asked[name]!r}" for name in asked if have[name] != asked[name]
    )


def _declared(settings: Subscription) -> dict[str, Any]:
    return {"attempts": settings.attempts, "dead_letter": settings.dead_letter}
