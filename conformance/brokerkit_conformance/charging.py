"""Money, as a check of a store tells it: a topic of payments, chargers behind it, and the books that they write."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from brokerkit.message import Message
from brokerkit.once import Outbox
from brokerkit.once.stores import store_for
from brokerkit_conformance.books import Books
from brokerkit_conformance.faults.proxy import Rule
from brokerkit_conformance.messages import plain
from brokerkit_conformance.service import Service
from brokerkit_conformance.story import WORK, ActorHandle, ProducerActor, Story


class ChargerActor(ActorHandle):
    def at(self, point: str, timeout: float = 60.0) -> str:
        """The id of the message at whose `point` it stands still."""
        return self.process.wait_at(point, timeout)

    def release(self) -> None:
        self.process.release()

    def close(self) -> None:
        self.process.close()


class Charging:
    """Declares the topic and opens the books; the chargers it starts are ended by the story."""

    role = "charger"
    shape = "transactions"
    """What the chargers are of that are told nothing else."""
    books: Books | Service

    def __init__(self, story: Story, books: Service | None = None) -> None:
        self.story = story
        self.store = story.own_store
        story.books = self.books = books or Books(self.store.url(), story.run_id)
        story.declare()
        if isinstance(self.books, Books):
            self.books.create()

    def charger(self, *, ready: bool = True, **options: Any) -> ChargerActor:
        """A charger that has its sessions; see `start_charger`."""
        return self.start_charger(**options).ready()

    def start_charger(
        self,
        *,
        shape: str = "",
        stop_at: str | None = None,
        after: int = 0,
        through: bool = False,
        drain: bool = False,
        options: Mapping[str, Any] | None = None,
        **handler: Any,
    ) -> ChargerActor:
        """A charger process. `through` the store's proxy; `handler`: see the actor."""
        if stop_at is not None:
            handler["stop_at"] = {"point": stop_at, "after": after}
        spec = {
            "topics": [self.story.topic],
            "subscription": WORK,
            "store": self.store.url(through=through),
            "books": self.books.name,
            "options": dict(options or {}),
            "handler": {"shape": shape or self.shape, **handler},
            "drain": drain,
        }
        charger = ChargerActor(self.story, self.story.start(self.role, spec))
        if through:
            self.store.network.watch(charger.pid)
        return charger

    def pay(self, count: int) -> ProducerActor:
        """A producer that has sent so many payments, all of which have ended."""
        producer = self.story.producer()
        producer.send(count)
        return producer

    def wait_charged(self, more: int = 0, timeout: float = 60.0, since: int = 0) -> bool:
        """Whether so many messages more than `since` are charged in time; 0: all that are owed."""
        story = self.story
        if more:
            return story.wait(lambda: len(self.books.charged()) >= since + more, timeout)
        return story.wait(lambda: not story.missing(), timeout)

    def wait_received(self, charger: ChargerActor, id: str, timeout: float) -> bool:
        """Whether this charger has, or had, the message in hand in time."""
        return self.story.wait(
            lambda: any(event.id == id for event in self.story.tail.by(charger.name, "receive")), timeout
        )

    # ------------------------------------------------------------ faults

    def break_store(self) -> None:
        """SIGKILL to the store, and its start on the same data. Raises CannotInduce."""
        story, local = self.story, self.store.need_process()

        def act(what: str) -> dict[str, Any]:
            before = local.pids()[0]
            getattr(local, what)()
            return {"pid": before, "pid_after": local.pids()[0]}

        evidence = story.fault("store_kill", self.store.name, lambda: act("kill"))
        story.did(f"SIGKILL {self.store.name} (pid {evidence['pid']})")
        evidence = story.fault("store_restart", self.store.name, lambda: act("restart"))
        story.journal.write("heal", "ok", kind="store")
        story.did(f"started {self.store.name} on the same data (pid {evidence['pid_after']})")

    def lost_in_commit(self, rule: Rule, whose: str, what: str) -> None:
        """Waits until the rule bit; takes it away."""
        story = self.story
        evidence = story.fault(what, whose, lambda: rule.wait(40.0))
        self.store.network.heal(rule)
        story.journal.write("heal", "ok", kind="store")
        story.did(f"swallowed a {evidence['frame']!r} between {whose} and the store, reset the connection")

    # ------------------------------------------------------------ the end

    def drain(self, **charger: Any) -> None:
        """Heals everything, lets a fresh charger finish, and reads the books."""
        story = self.story
        story.end_actors(self.role)
        story.drain(start=lambda name: self.start_charger(drain=True, **charger))
        self.read()

    def read(self) -> None:
        """Writes down what the ledger says."""
        story = self.story
        for row in self.books.charges():
            story.journal.write(
                "charge",
                "ok",
                row.message,
                dollars=row.dollars,
                account=row.account,
                by=row.worker,
                made_at=row.made_at,
                subscription=WORK,
            )
        story.journal.write("ledger", "ok", balances=self.books.balances())


class RelayedPayments:
    """Payments that are written into an outbox of the cell's own, and the relays that send them."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.url = story.own_store.url()
        self.outbox = Outbox(self.url, story.run_id)

    def write(self, count: int) -> None:
        """In one transaction; whose commit is the promise that they will be sent."""
        story, store = self.story, store_for(self.url)
        samples = list(plain(f"{story.run_id}-outbox", len(story.sent()), count, 0, 64))
        for number, sample in enumerate(samples):
            story.journal.write("send", "invoke", sample.id, topic=story.topic, sha=sample.digest, seq=number)
        with closing(store.connect(self.url)) as connection:
            store.begin(connection)
            messages = [Message(each.body, id=each.id, headers=each.headers_with_digest()) for each in samples]
            self.outbox.send_many(connection, story.topic, messages)
            store.commit(connection)
        for sample in samples:
            story.journal.write("send", "ok", sample.id)

    def relay(self, stop_at: str | None = None) -> ChargerActor:
        """A relay that is at it, ten rows at a time."""
        handler = {} if stop_at is None else {"stop_at": {"point": stop_at}}
        spec = {"store": self.url, "outbox": self.outbox.name, "batch": 10, "handler": handler}
        return ChargerActor(self.story, self.story.start("relayer", spec)).ready()

    def waiting(self) -> int:
        """Rows that are not marked as sent."""
        return self.outbox.lag().rows
