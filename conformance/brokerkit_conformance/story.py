"""What a check holds in its hands: a topic of its own, actors, faults, and the drain at the end.

Every method journals what it does; a check reads from top to bottom as the story that the report tells.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn, Self

from brokerkit.errors import BrokerkitError, NotSupported
from brokerkit.guarantees import Claim, Claims, Properties
from brokerkit.local.contract import StartFailed
from brokerkit_conformance.actors.stage import adapted
from brokerkit_conformance.actors.supervise import Actor
from brokerkit_conformance.books import Books
from brokerkit_conformance.faults import CannotInduce
from brokerkit_conformance.faults.proxy import Proxy, Rule
from brokerkit_conformance.faults.together import Together
from brokerkit_conformance.history import Event, History, Journal
from brokerkit_conformance.service import Service
from brokerkit_conformance.stores import Store
from brokerkit_conformance.tail import Tail
from brokerkit_conformance.targets import Target

WORK = "work"
_SLACK = 1.5
_HANDLING = 3.0
"""Seconds of the longest handling time that a story declares to have short leases."""
_LONGEST = 60.0
"""Seconds of a lease that a story can wait out."""
_MOVES = ("assigned", "revoked", "lost")


class Story:
    """One cell while it runs. Used from one thread."""

    def __init__(
        self,
        target: Target,
        check: str,
        point: str,
        producer_guarantee: str,
        guarantee: str,
        *,
        trials: int,
        seed: int,
        directory: Path,
        subscriptions: tuple[str, ...] = (WORK,),
        adapter: str | None = None,
        together: Together | None = None,
        programs: Mapping[str, Sequence[str]] = MappingProxyType({}),
        store: Store | None = None,
    ) -> None:
        self.store = store
        self.books: Books | Service | None = None
        """Where effects are, once a check has opened them."""
        self.target = target
        self.check = check
        self.point = point
        self.producer_guarantee = producer_guarantee
        self.guarantee = guarantee
        where = f"/{store.name}" if store is not None else ""
        self.random = random.Random(f"{seed}/{target.name}/{check}/{producer_guarantee}/{guarantee}{where}")
        self.seed = seed
        self.run_id = uuid.uuid4().hex[:8]
        self.topic = f"{check.rpartition('.')[2][:20].strip('_')}-{self.run_id}"
        self.done: list[str] = []
        self.trials_wanted = trials
        self.trials_done = 0
        self.directory = directory
        self.journal = Journal(directory / "supervisor.jsonl", "supervisor")
        self.tail = Tail(directory)
        self.subscriptions = subscriptions
        self._adapter = adapter
        self._programs = programs
        self._together = together or Together(1)
        self._actors: list[Actor] = []
        self._rules: list[Rule] = []
        self._counts: dict[str, int] = {}
        self._trial = 0
        self._topics: list[str] = []
        self._consumer_options: dict[str, Any] = {}
        self._declared: dict[str, Any] = {}
        self._settings: Mapping[str, str] = {}
        self._broken: set[int] = set()
        self._tells_depth = True
        # Into a store, messages are received at least once: what is exactly once are the effects there.
        self._received = guarantee if store is None else "at_least_once"
        self.claims: Claims = target.claims(producer_guarantee, self._received)

    # ------------------------------------------------------------ what is known

    @property
    def claim(self) -> Claim | None:
        return self.claims.points.get(self.point)

    @property
    def own_store(self) -> Store:
        """The store that a check of stores has to itself."""
        assert self.store is not None
        return self.store

    @property
    def properties(self) -> Properties:
        return self.claims.properties

    @property
    def bound(self) -> float:
        """Seconds within which whatever a dead or frozen consumer held is somebody else's."""
        return self.properties.redelivery_seconds

    @property
    def at_most_once(self) -> bool:
        return self.guarantee == "at_most_once"

    # ------------------------------------------------------------ set-up

    def declare(self, *subscriptions: str, topic: str | None = None, **options: Any) -> None:
        """The story's topic (or another) with these subscriptions, `work` by default."""
        names = subscriptions or (WORK,)
        topic = topic or self.topic
        options = {**self._declared, **options}
        for name in ("attempts", "dead_letter", "retry", "handling_seconds"):
            if options.get(name) is not None:
                self._consumer_options[name] = options[name]
        with self.target.connect(self._settings) as broker:
            broker.declare(topic, names, **options)
        if topic not in self._topics:
            self._topics.append(topic)

    def shorten_leases(self) -> float:
        """From here on leases are over within seconds, by the plugin's own settings or, where they are set from it, by
        the longest handling time; returns how many seconds. Before `declare`. Raises CannotInduce where there is no
        lease, or none so short."""
        if self.properties.lease == "none":
            self.unsupported("a delivery is its consumer's for as long as its session lives: no lease can be over")
        self._settings = self.properties.short_lease
        with self.target.connect(self._settings) as broker:
            broker.describe()  # what can be set may depend on the version
            self.claims = broker.claims(self.producer_guarantee, self._received)
        if self.properties.handling_sets_lease:
            self._declared["handling_seconds"] = _HANDLING
            return _HANDLING
        seconds = self.properties.lease_seconds
        if seconds is None or seconds > _LONGEST:
            self.unsupported(
                f"its lease of {seconds or 0:g} s cannot be made short from here: whoever runs the broker sets it"
            )
        return seconds

    def connect(self) -> Any:
        """The broker as the actors have it, inside the adapter, if any."""
        return adapted(self.target.connect(self._settings), self._adapter)

    def depth(self, subscription: str = WORK, topic: str | None = None) -> int | None:
        """What is left of a subscription; None when the broker does not tell now."""
        try:
            with self.target.connect(self._settings) as broker:
                return broker.depth(topic or self.topic, subscription)
        except NotSupported as error:
            if self._tells_depth:
                self.note(f"depth is not told: {error}")
            self._tells_depth = False
            return None
        except BrokerkitError as error:
            self.note(f"depth is not known: {error}")
            return None

    def producer(
        self, *, proxied: bool = False, delivery_timeout: float = 60.0, topic: str | None = None
    ) -> ProducerActor:
        """A producer process, ready to send."""
        return self.start_producer(proxied=proxied, delivery_timeout=delivery_timeout, topic=topic).ready()

    def start_producer(
        self, *, proxied: bool = False, delivery_timeout: float = 60.0, topic: str | None = None
    ) -> ProducerActor:
        """The same, without waiting until it is ready."""
        name = self._name("producer")
        spec = {
            "topic": topic or self.topic,
            "guarantee": self.producer_guarantee,
            "delivery_timeout": delivery_timeout,
            "prefix": f"{self.run_id}-{name}",
        }
        return ProducerActor(self, self._start("producer", name, spec, proxied))

    def consumer(self, *, proxied: bool = False, **options: Any) -> ConsumerActor:
        """A consumer process that has its session; see `start_consumer`."""
        return self.start_consumer(proxied=proxied, **options).ready()

    def start_consumer(
        self,
        *,
        subscription: str = WORK,
        topic: str | None = None,
        stop_at: str | None = None,
        after: int = 0,
        proxied: bool = False,
        guarantee: str | None = None,
        prefetch: int | None = None,
        drain: bool = False,
        options: dict[str, Any] | None = None,
        **handler: Any,
    ) -> ConsumerActor:
        """A consumer process. `stop_at` a barrier after so many handled messages; `handler`: see the actor."""
        if stop_at is not None:
            handler["stop_at"] = {"point": stop_at, "after": after}
        chosen = {**self._consumer_options, **(options or {})}
        if prefetch is not None:
            chosen["prefetch"] = prefetch
        spec = {
            "topics": [topic or self.topic],
            "subscription": subscription,
            "guarantee": guarantee or self.guarantee,
            "options": chosen,
            "handler": handler,
            "drain": drain,
        }
        return ConsumerActor(self, self._start("consumer", self._name("consumer"), spec, proxied))

    def start(self, role: str, spec: dict[str, Any], *, proxied: bool = False) -> Actor:
        """A process of any other kind of actor, named after its role."""
        return self._start(role, self._name(role), spec, proxied)

    def end_actors(self, role: str) -> None:
        """Ends those that still live of one kind."""
        for actor in self._actors:
            if actor.name.startswith(f"{role}-"):
                actor.end()

    # ------------------------------------------------------------ telling

    def note(self, text: str) -> None:
        self.journal.write("note", text=text)

    def did(self, text: str) -> None:
        """One sentence of the story."""
        self.done.append(text)
        self.journal.write("note", text=text, told=True)

    def expect(self, what: str, holds: bool, got: object = "", *, witness: bool = False) -> None:
        """Something asserted beyond counts. With `witness`, something that must be seen."""
        self.journal.write("expect", "ok" if holds else "fail", what=what, got=str(got), witness=witness)

    def unsupported(self, why: str) -> NoReturn:
        """Ends the story: this cannot be asked here."""
        raise CannotInduce(why)

    def trials(self, at_most: int | None = None) -> Iterator[int]:
        """Numbers the repetitions; the faults in between carry the number."""
        wanted = self.trials_wanted if at_most is None else min(at_most, self.trials_wanted)
        for number in range(1, wanted + 1):
            self._trial = number
            self.journal.write("trial", "invoke", n=number)
            yield number
            self.journal.write("trial", "ok", n=number)
            self.trials_done = number
        self._trial = 0

    # ------------------------------------------------------------ watching

    def wait(self, true: Callable[[], bool], timeout: float = 30.0) -> bool:
        """Whether `true()` became true, asked after each look at the journals."""
        return self.tail.until(true, timeout)

    def sent(self, type: str = "invoke") -> set[str]:
        """Ids sent so far; with `ok` those confirmed."""
        self.tail.refresh()
        return set(self.tail.ids("send", type))

    def count(self, op: str, type: str | None = None) -> int:
        self.tail.refresh()
        return self.tail.count(op, type)

    def effects(self, subscription: str = WORK) -> set[str]:
        self.tail.refresh()
        return set(self.tail.ids("effect", "ok", subscription=subscription))

    def received_by(self, actor: str) -> list[Event]:
        self.tail.refresh()
        return self.tail.by(actor, "receive")

    def wait_effects(self, count: int, subscription: str = WORK, timeout: float = 30.0) -> bool:
        """Whether `count` different messages had their effect in time."""
        return self.wait(lambda: len(self.tail.ids("effect", "ok", subscription=subscription)) >= count, timeout)

    def wait_effect_by(self, actor: str, id: str, timeout: float) -> bool:
        """Whether this actor did the effect of this message in time."""
        return self.wait(lambda: any(event.id == id for event in self.tail.by(actor, "effect")), timeout)

    def wait_settled_membership(self, quiet: float = 2.5, timeout: float = 30.0) -> None:
        """Until nothing was assigned to, or taken from, any consumer for `quiet` seconds."""
        until = time.monotonic() + timeout
        since = time.monotonic_ns()
        while time.monotonic() < until:
            moves = [e.t for e in self.tail.refresh() if e.op == "event" and e.get("kind") in _MOVES]
            if not moves or time.monotonic_ns() - max(since, *moves) > quiet * 1e9:
                return
            time.sleep(0.1)
        self.note("work still moved between consumers when the check went on")

    # ------------------------------------------------------------ faults

    def fault(
        self, kind: str, target: str, act: Callable[[], Mapping[str, Any]], *, point: str | None = None
    ) -> Mapping[str, Any]:
        """Does it, between two lines of the journal, the second with its evidence. `point`: the barrier at which
        the target stood."""
        what: dict[str, Any] = {"kind": kind, "target": target, "trial": self._trial}
        if point is not None:
            what["point"] = point
        self.journal.write("fault", "invoke", **what)
        try:
            evidence = act()
        except Exception as error:
            how = "unsupported" if isinstance(error, NotSupported) else "error"
            self.journal.write("fault", "fail", **what, evidence={how: str(error)})
            raise
        self.journal.write("fault", "ok", **what, evidence=evidence)
        return evidence

    def kill(self, actor: ActorHandle, what: str = "", *, at: str | None = None) -> None:
        """SIGKILL; the evidence is the status that waitpid told, and the barrier where it stood."""
        evidence = self.fault("kill", actor.name, lambda: {"status": actor.process.kill()}, point=at)
        self.did(f"SIGKILL {actor.name}{' ' + what if what else ''}: waitpid says {evidence['status']}")

    def freeze(self, actor: ActorHandle, what: str = "", *, at: str | None = None) -> None:
        """SIGSTOP; the evidence is the state that the kernel tells."""

        def freeze() -> dict[str, str]:
            actor.process.freeze()
            return {"state": actor.process.state()}

        self.fault("freeze", actor.name, freeze, point=at)
        self.did(f"SIGSTOP {actor.name}{' ' + what if what else ''}")

    def thaw(self, actor: ActorHandle) -> None:
        """SIGCONT."""
        actor.process.thaw()
        self.journal.write("heal", "ok", kind="thaw", target=actor.name)
        self.did(f"SIGCONT {actor.name}")

    def terminate(self, actor: ActorHandle) -> None:
        """SIGTERM, and it closes in order; the evidence is its status."""
        status = self.fault("terminate", actor.name, lambda: {"status": actor.process.terminate()})["status"]
        self.expect(f"{actor.name} ends in order after SIGTERM", status == 0, status)

    @property
    def network(self) -> Proxy:
        """The proxy before the target. Raises CannotInduce where there is none."""
        if self.target.proxy is None:
            raise CannotInduce("it is not reached over a network in which a frame could be lost")
        return self.target.proxy

    @property
    def frames(self) -> Proxy:
        """The same, where frames can be told apart."""
        if not self.network.sees_frames:
            raise CannotInduce("its plugin brings no codec: single frames cannot be told apart")
        return self.network

    def armed(self, rule: Rule) -> Rule:
        self._rules.append(rule)
        return rule

    def fired(self, rule: Rule, kind: str, target: str, timeout: float = 20.0) -> Mapping[str, Any]:
        """Waits until a rule of the proxy bit, and journals that. Raises DidNotFire."""
        return self.fault(kind, target, lambda: rule.wait(timeout))

    def heal_network(self) -> None:
        """Takes this story's rules away."""
        if self._rules and self.target.proxy is not None:
            for rule in self._rules:
                self.target.proxy.heal(rule)
            self._rules.clear()
            self.journal.write("heal", "ok", kind="network")

    # ------------------------------------------------------------ the broker's processes

    def need_broker_process(self, nodes: int = 1) -> None:
        """Raises CannotInduce where there is no process of ours, or not so many nodes."""
        if self.target.local is None:
            raise CannotInduce("the broker was not started here: its process cannot be touched")
        if self.target.nodes == 0:
            raise CannotInduce("it has no process of its own that could be killed or stopped")
        if self.target.nodes < nodes:
            raise CannotInduce(f"it has {self.target.nodes} node; run {self.target.name}:{nodes}nodes")

    def broker(self, what: Literal["kill", "pause", "resume", "restart"], node: int = 0) -> None:
        """Does it to one node, once for all cells that share this fault."""
        local = self.target.local
        assert local is not None

        def act() -> dict[str, Any]:
            before = local.pids()[node]
            getattr(local, what)(node)
            return {"pid": before, "pid_after": local.pids()[node], "node": node}

        (self._broken.add if what in ("kill", "pause") else self._broken.discard)(node)
        try:
            evidence = self.fault(f"broker_{what}", f"node {node}", lambda: self._together.do(act))
        except NotSupported as error:
            self._broken.discard(node)
            self.unsupported(str(error))
        self.did(f"broker node {node}: {what} (pid {evidence['pid']})")
        if what in ("resume", "restart") and not self._broken:
            self.journal.write("heal", "ok", kind="broker")

    def break_broker(self) -> None:
        """SIGKILL to every node, and their start on the same data."""
        for what in ("kill", "restart"):
            for node in range(self.target.asked.nodes):
                self.broker(what, node)

    def same_for_all(self, find: Callable[[], Any]) -> Any:
        """What `find` returns, asked once for all cells that share a fault."""
        return self._together.do(find)

    # ------------------------------------------------------------ the drain

    def drain(
        self,
        *subscriptions: str,
        workers: bool = True,
        deadline: float | None = None,
        start: Callable[[str], ActorHandle] | None = None,
    ) -> None:
        """Heals everything, ends the workers, and reads every subscription empty with fresh consumers, or with what
        `start` makes for it.

        Stops once every message owed was seen, or the broker says that nothing is left, and then once more after
        a quiet window longer than any redelivery takes; at a hard deadline at the latest. Says which. A broker that
        does not tell what is left has nothing left when nothing came for that long to a consumer that took all.
        """
        self.heal_network()
        for actor in self._actors if workers else ():
            actor.end()
        names = subscriptions or self.subscriptions
        self.journal.write("drain_begin", subscriptions=list(names))
        start = start or (lambda name: self.start_consumer(subscription=name, drain=True))
        fresh = [start(name) for name in names]
        for consumer in fresh:
            consumer.ready()
        began = time.monotonic()
        until = began + (deadline or 30.0 + 4.0 * self.bound)
        self.wait(lambda: self._seen_or_empty(names, began + self.bound), until - time.monotonic())
        # Whatever a dead consumer held has to have come back by now; what comes late shows up here.
        self._stay(max(began + _SLACK * self.bound - time.monotonic(), 0.5))
        depths = self._empty(names, began, until)
        missing = {name: len(self.missing(name)) for name in names}
        self.journal.write(
            "drain_end",
            reason="complete" if all(self._nothing_left(name, depths[name], began) for name in names) else "deadline",
            missing=sum(missing.values()),
            depth=sum(depth or 0 for depth in depths.values()),
            by_subscription={name: {"missing": missing[name], "depth": depths[name]} for name in names},
            seconds=round(time.monotonic() - began, 3),
        )
        for consumer in fresh:
            consumer.process.end()
        left = ", ".join(f"{'untold' if depth is None else depth} in {name}" for name, depth in depths.items())
        self.did(f"read to the end: {sum(missing.values())} not seen; the broker says what is left: {left}")

    def _empty(self, names: tuple[str, ...], began: float, until: float) -> dict[str, int | None]:
        """What the broker says is left, waiting until that is nothing, for the last acks take their time."""
        while True:
            depths = {name: self.depth(name) for name in names}
            nothing = all(self._nothing_left(name, depth, began) for name, depth in depths.items())
            if nothing or time.monotonic() > until:
                return depths
            self._stay(0.3)

    def _nothing_left(self, name: str, depth: int | None, began: float) -> bool:
        """As the broker tells; where it does not, when nothing came since the drain began, or for longer than any
        redelivery takes."""
        if depth is not None or self._tells_depth:
            return depth == 0
        came = [e.t / 1e9 for e in self.tail.events if e.op == "receive" and e.get("subscription") == name]
        return time.monotonic() - max([began, *came]) > _SLACK * self.bound

    def _seen_or_empty(self, names: tuple[str, ...], not_before: float) -> bool:
        if not any(self.missing(name) for name in names):
            return True
        began = not_before - self.bound
        return time.monotonic() > not_before and all(
            self._nothing_left(name, self.depth(name), began) for name in names
        )

    def missing(self, subscription: str = WORK) -> Set[str]:
        """What is owed to a subscription and had no effect yet, of what was read so far."""
        if self.producer_guarantee == "at_most_once":
            owed = self.tail.ids("send", "invoke") - self.tail.ids("send", "fail")
        else:
            owed = self.tail.ids("send", "ok")
        seen = self.tail.ids("effect", "ok", subscription=subscription) | self.tail.ids("dead", "ok")
        if self.books is not None:
            seen |= self.books.charged()
        return owed - seen

    def _stay(self, seconds: float) -> None:
        self.tail.until(lambda: False, seconds, pause=0.2)

    # ------------------------------------------------------------ the end

    def finish(self) -> None:
        """Ends every process, heals what is broken, removes the topics. Never raises."""
        for actor in self._actors:
            actor.end()
        self.heal_network()
        self._mend_broker()
        self._together.leave()
        if self.books is not None:
            self.books.close()
        with contextlib.suppress(BrokerkitError):  # a broker that is gone has no topics to remove
            with self.target.connect() as broker:
                for topic in self._topics:
                    broker.delete(topic)
        own = self.journal
        own.write("process_end", status=0, target=own.actor, lines=own.lines + 1)
        own.close()

    def history(self) -> History:
        return History.load(self.directory)

    def _mend_broker(self) -> None:
        local = self.target.local
        for node in sorted(self._broken):
            assert local is not None
            try:
                if local.pids()[node]:
                    local.resume(node)
                else:
                    local.restart(node)
                self.note(f"node {node} was still broken and has been mended")
            except StartFailed as error:
                self.note(f"node {node} was still broken and stays so: {error}")
        self._broken.clear()

    def _name(self, role: str) -> str:
        self._counts[role] = self._counts.get(role, 0) + 1
        return f"{role}-{self._counts[role]}"

    def _start(self, role: str, name: str, spec: dict[str, Any], proxied: bool) -> Actor:
        whole = {
            "url": self.target.url({**self._settings, **spec.pop("settings", {})}, through=proxied),
            "actor": name,
            "journal": str(self.directory / f"{name}.jsonl"),
            "adapter": self._adapter,
            **spec,
        }
        actor = Actor(self._programs.get(role) or role, whole, self.journal, self.directory)
        self._actors.append(actor)
        if proxied:
            self.network.watch(actor.pid)
        return actor


class ActorHandle:
    """An actor as a check sees it."""

    def __init__(self, story: Story, process: Actor) -> None:
        self.story = story
        self.process = process
        self.name = process.name
        self.pid = process.pid

    def ready(self) -> Self:
        self.process.wait_ready()
        return self


class ProducerActor(ActorHandle):
    def send(self, count: int, *, timeout: float = 90.0, **options: Any) -> None:
        """Sends so many messages and returns when every receipt has ended."""
        self.start(count, **options)
        self.finish_sending(timeout)

    def start(self, count: int, **options: Any) -> None:
        """Begins to send; `rate` a second where the target bears it, `keys`, `size`, `kind`."""
        if "rate" in options:
            options["rate"] = self.story.target.bearable(options["rate"])
        self.process.command("send", count=count, **options)

    def finish_sending(self, timeout: float = 90.0) -> None:
        self.process.wait_for("DONE", timeout)

    def stop(self, timeout: float = 90.0) -> None:
        """Sends no more, waits for the receipts, closes."""
        self.process.command("stop")
        self.finish_sending(timeout)
        self.process.close()

    def close(self) -> None:
        self.process.close()


class ConsumerActor(ActorHandle):
    def at(self, point: str, timeout: float = 45.0) -> str:
        """The id of the message at whose `point` it stands still."""
        return self.process.wait_at(point, timeout)

    def release(self) -> None:
        self.process.release()

    def close(self) -> None:
        self.process.close()

    def wait_closed(self, timeout: float = 60.0) -> int:
        return self.process.wait_end(timeout)
