"""Runs cells: each check at each pair of guarantees on each target, several at once where they may."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Protocol

from brokerkit.errors import BrokerkitError, NotSupported
from brokerkit.guarantees import Claim
from brokerkit.local.contract import StartFailed, Unavailable
from brokerkit.local.keeper import temporary_directory
from brokerkit_conformance import money, verdict
from brokerkit_conformance.actors.supervise import ActorFailed, Interrupted, ending_all, going_on
from brokerkit_conformance.cell import Cell
from brokerkit_conformance.checkers import Findings, examine
from brokerkit_conformance.checks.registry import CheckSpec, checks_of, matching
from brokerkit_conformance.faults import CannotInduce, DidNotFire
from brokerkit_conformance.faults.together import Together
from brokerkit_conformance.history import History
from brokerkit_conformance.stores import Store, Stores
from brokerkit_conformance.story import Story
from brokerkit_conformance.targets import Asked, Target

AT_ONCE = 8
TARGETS_AT_ONCE = 2
"""Cells wait for leases, outages and restarts more than they compute: one target alone leaves two cores idle."""


class Watcher(Protocol):
    """Who is told what a run does; called from several threads."""

    def target(self, name: str, doing: str) -> None: ...
    def planned(self, target: str, cells: int) -> None: ...
    def begins(self, plan: Plan) -> None: ...
    def ended(self, cell: Cell) -> None: ...


class Quiet:
    """Watches nothing."""

    def target(self, name: str, doing: str) -> None: ...
    def planned(self, target: str, cells: int) -> None: ...
    def begins(self, plan: Plan) -> None: ...
    def ended(self, cell: Cell) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """One cell that is to run."""

    target: str
    spec: CheckSpec
    producer: str
    consumer: str
    store: str = ""
    """The name of the store that its effects are in; a check of stores that has none is skipped."""

    @property
    def slug(self) -> str:
        parts = (self.target, self.spec.name, self.producer, self.consumer, *filter(None, [self.store]))
        return "--".join(re.sub(r"[^A-Za-z0-9_.-]+", "_", part) for part in parts)


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked of a run. `scale` multiplies every check's trials; `programs` are commands by the role that
    they play instead of our own actor (one line of JSON in, journal and words out: see actors/stage.py)."""

    checks: Sequence[str] = ()
    guarantees: Sequence[str] = ()
    seed: int = 0
    scale: int = 1
    at_once: int = AT_ONCE
    targets_at_once: int = TARGETS_AT_ONCE
    adapter: str | None = None
    programs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stores: Stores = field(default_factory=Stores)


@dataclass(slots=True)
class Run:
    """All that a run found: the cells, and of each target its versions, or why it could not be brought up."""

    cells: list[Cell] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    @property
    def green(self) -> bool:
        return bool(self.cells) and not self.unavailable and all(cell.green for cell in self.cells)


def run(targets: Sequence[Asked], options: Options, report: Path, found: Run, watcher: Watcher | None = None) -> None:
    """Runs everything, so many targets at a time, and adds to `found` what it finds. Histories are kept under
    `report`/histories. Interrupted, it adds the cells that had ended, ends all the others, and raises."""
    watcher = watcher or Quiet()
    permits = threading.Semaphore(options.at_once)
    cells: dict[str, list[Cell]] = {}

    def one(asked: Asked) -> None:
        watcher.target(asked.name, "starting")
        try:
            with Target(asked) as target:
                found.versions[asked.name] = target.versions
                watcher.target(asked.name, "running")
                cells[asked.name] = run_target(target, options, report, watcher, permits)
        except (Unavailable, BrokerkitError) as error:
            found.unavailable[asked.name] = str(error)
            watcher.target(asked.name, f"unavailable: {error}")

    pool = ThreadPoolExecutor(options.targets_at_once, thread_name_prefix="target")
    try:
        running = {pool.submit(one, asked) for asked in targets}
        while running:
            # A signal that came just before a wait is seen after it, so that none may be long.
            done, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for some in done:
                some.result()
    except BaseException:
        with ending_all():
            pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown()
        found.cells += [cell for asked in targets for cell in cells.get(asked.name, ())]


def run_target(
    target: Target, options: Options, report: Path, watcher: Watcher, permits: threading.Semaphore
) -> list[Cell]:
    """All cells of a running target: those that leave the broker alone at once, as far as there are `permits`, which
    all targets share; the others check by check. Fewer, if the run is interrupted."""
    plans = plan(target, options)
    watcher.planned(target.name, len(plans))
    shared = [some for some in plans if not some.spec.exclusive]
    alone = [some for some in plans if some.spec.exclusive]
    cells: dict[str, Cell] = {}

    def one(some: Plan, meeting: Together | None = None) -> None:
        going_on()
        watcher.begins(some)
        cell = run_cell(target, some, options, report, meeting)
        going_on()
        cells[some.slug] = cell
        watcher.ended(cell)

    def permitted(some: Plan) -> None:
        with permits:
            one(some)

    at_once = min(options.at_once, target.cells_at_once or options.at_once)
    together = list(_together(alone, target.cells_at_once or len(alone)))
    pool = ThreadPoolExecutor(max([at_once, *map(len, together)]), thread_name_prefix="cell")
    try:
        # The checks at the end of the list take longest: begun first, none of them is left over alone.
        _all(pool, [partial(permitted, some) for some in reversed(shared)], at_once)
        for group in together:
            meeting = Together(len(group))
            _all(pool, [partial(one, some, meeting) for some in group], len(group))
    except Interrupted:
        watcher.target(target.name, "interrupted")
    finally:
        pool.shutdown(cancel_futures=True)
    return [cells[some.slug] for some in plans if some.slug in cells]


def plan(target: Target, options: Options) -> list[Plan]:
    """What is to run: matching checks at the guarantees that the target offers."""
    return [
        Plan(target.name, spec, producer, consumer, store)
        for spec in matching(checks_of(target.plugin.name), list(options.checks))
        for producer, consumer in spec.pairs(target.capabilities)
        for store in ((options.stores.names or [""]) if spec.in_store else [""])
        if not options.guarantees or producer in options.guarantees or consumer in options.guarantees
    ]


def run_cell(target: Target, some: Plan, options: Options, report: Path, together: Together | None = None) -> Cell:
    """One cell, from its set-up to its verdict. What goes wrong in it ends in the verdict, never here."""
    if not some.spec.in_store:
        return _run_cell(target, some, options, report, together)
    if not some.store:
        return _without_store(some, options, "skipped", "no store was named to run it with: --store NAME")
    with ExitStack() as taken:
        try:
            store = taken.enter_context(options.stores.taken(some.store))
        except (Unavailable, StartFailed, BrokerkitError) as error:
            return _without_store(some, options, "inconclusive", f"the store did not start: {error}")
        if not store.tables and not some.spec.keys:
            why = f"{store.name} keeps idempotency keys and nothing else, and this check needs tables"
            return _without_store(some, options, "skipped", why)
        return _run_cell(target, some, options, report, together, store)


def _without_store(some: Plan, options: Options, verdict: str, reason: str) -> Cell:
    cell = Cell(some.target, some.spec.name, some.consumer, some.producer, some.store, asked=some.spec.asked)
    cell.verdict, cell.reason, cell.seed = verdict, reason, options.seed
    return cell


def _run_cell(
    target: Target, some: Plan, options: Options, report: Path, together: Together | None, store: Store | None = None
) -> Cell:
    began = time.monotonic()
    spec = some.spec
    with temporary_directory("brokerkit-cell-") as directory:
        story = Story(
            target,
            spec.name,
            spec.point,
            some.producer,
            some.consumer,
            trials=max(1, spec.trials * options.scale),
            seed=options.seed,
            directory=directory,
            subscriptions=spec.subscriptions,
            adapter=options.adapter,
            together=together,
            programs=options.programs,
            store=store,
        )
        _open(story, spec)
        trouble = _tell(story, spec)
        history = story.history()
        file = report / "histories" / f"{some.slug}.jsonl"
        history.save(file)
    cell = judged(history, f"histories/{file.name}")
    cell.done = story.done
    cell.trials = story.trials_done
    cell.seconds = round(time.monotonic() - began, 3)
    if trouble and cell.verdict in ("held", "inconclusive", "not witnessed", "skipped"):
        cell.verdict = "inconclusive"
        cell.reason = trouble
    return cell


def judged(history: History, file: str) -> Cell:
    """The cell that a history amounts to; nothing but the history is looked at."""
    head = history.cell
    if head is None:
        raise ValueError("this history does not say what it was to prove: it has no cell event")
    findings = examine(history)
    judgement = verdict.judge(history, findings)
    notes = [str(event.get("text")) for event in history.of("note") if event.get("told")]
    return Cell(
        target=head.get("target"),
        check=head.get("check"),
        guarantee=head.get("guarantee"),
        producer_guarantee=head.get("producer_guarantee"),
        store=(head.get("store") or {}).get("name", ""),
        claim=head.get("claim"),
        verdict=str(judgement.verdict),
        trials=len(history.of("trial", "ok")),
        seed=head.get("seed", 0),
        observed=dict(findings.observed),
        metrics=dict(findings.metrics),
        fault=_faults(findings, head.t),
        history=file,
        reason=judgement.why,
        asked=head.get("asked", ""),
        done=notes,
        seen=list(_seen(findings, history)),
    )


def _tell(story: Story, spec: CheckSpec) -> str:
    """Runs the check; returns what went wrong beside what the history says, or nothing."""
    try:
        spec.run(story)
        return ""
    except (CannotInduce, NotSupported) as cannot:
        # The library says by name that this broker has no such thing, as a check does.
        story.journal.write("unsupported", reason=str(cannot))
        return ""
    except DidNotFire as error:
        return f"the fault did not fire: {error}"
    except (ActorFailed, BrokerkitError, StartFailed, TimeoutError, OSError) as error:
        return f"the check could not be carried through: {type(error).__name__}: {error}"
    finally:
        story.finish()


def _open(story: Story, spec: CheckSpec) -> None:
    store = story.store
    if store is not None:
        claim: Claim | None = spec.of_store(store.claim_of_keys if spec.keys else store.claim)
    else:
        claimed = spec.claimed(story.producer_guarantee, story.guarantee, story.properties)
        claim = story.claim if claimed else None
    story.journal.write(
        "cell",
        target=story.target.name,
        check=spec.name,
        point=spec.point,
        guarantee=story.guarantee,
        producer_guarantee=story.producer_guarantee,
        claim=None if claim is None else asdict(claim),
        properties=asdict(story.properties),
        seed=story.seed,
        needs_fault=spec.needs_fault,
        subscriptions=list(spec.subscriptions),
        witness=spec.witness_for(story.producer_guarantee, story.guarantee, story.properties),
        asked=spec.asked,
        versions=story.target.versions,
        store=None if store is None else {"name": store.name, **store.versions},
    )


def _faults(findings: Findings, began: int) -> list[dict[str, object]]:
    return [
        {
            "kind": fault.kind,
            "target": fault.target,
            "trial": fault.trial,
            "at": round((fault.began - began) / 1e9, 3),
            "evidence": dict(fault.evidence),
        }
        for fault in findings.faults
        if fault.fired
    ]


def _seen(findings: Findings, history: History) -> Iterator[str]:
    seen = findings.observed
    yield (
        f"{seen['sent']} sent: {seen['confirmed']} confirmed, {seen['refused']} refused, {seen['unknown']} unknown; "
        f"{seen['received']} received, {seen['effects']} effects: {seen['lost']} lost, {seen['duplicated']} twice"
    )
    if ledger := money.told(history):
        yield ledger
    for event in history.of("expect"):
        word = "yes" if event.type == "ok" else "NO"
        yield (
            f"{event.get('what')}: {word} ({event.get('got')})" if event.get("got") else f"{event.get('what')}: {word}"
        )


def _together(alone: list[Plan], most: int) -> Iterator[list[Plan]]:
    """Cells that share one fault: those of one check, so many as the broker bears at a time."""
    for _, group in groupby(alone, lambda some: some.spec.name):
        plans = list(group)
        yield from (plans[start : start + most] for start in range(0, len(plans), most))


def _all(pool: ThreadPoolExecutor, jobs: list[Callable[[], None]], at_once: int) -> None:
    """Runs the jobs, so many at once, and raises the first error of the suite's own."""
    waiting = list(jobs)
    running: set[Future[None]] = set()
    while waiting or running:
        while waiting and len(running) < at_once:
            running.add(pool.submit(waiting.pop(0)))
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for some in done:
            some.result()
