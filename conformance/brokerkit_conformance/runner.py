"""Runs cells: each check at each pair of guarantees on each target, several at once where they may."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Protocol

from brokerkit.errors import BrokerkitError
from brokerkit.local.contract import Unavailable
from brokerkit.local.keeper import temporary_directory
from brokerkit_conformance import verdict
from brokerkit_conformance.actors.supervise import ActorFailed, ending_all
from brokerkit_conformance.cell import Cell
from brokerkit_conformance.checkers import Findings, examine
from brokerkit_conformance.checks.registry import CheckSpec, checks_of, matching
from brokerkit_conformance.faults import CannotInduce, DidNotFire
from brokerkit_conformance.faults.together import Together
from brokerkit_conformance.history import History
from brokerkit_conformance.story import Story
from brokerkit_conformance.targets import Asked, Target

AT_ONCE = 8


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

    @property
    def slug(self) -> str:
        parts = (self.target, self.spec.name, self.producer, self.consumer)
        return "--".join(re.sub(r"[^A-Za-z0-9_.-]+", "_", part) for part in parts)


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked of a run. `scale` multiplies every check's trials."""

    checks: Sequence[str] = ()
    guarantees: Sequence[str] = ()
    seed: int = 0
    scale: int = 1
    at_once: int = AT_ONCE
    adapter: str | None = None


@dataclass(slots=True)
class Run:
    """All that a run found: the cells, and of each target its versions, or why it could not be brought up."""

    cells: list[Cell]
    versions: dict[str, dict[str, str]]
    unavailable: dict[str, str]

    @property
    def green(self) -> bool:
        return bool(self.cells) and not self.unavailable and all(cell.green for cell in self.cells)


def run(targets: Sequence[Asked], options: Options, report: Path, watcher: Watcher | None = None) -> Run:
    """Runs everything, one target after the other. Histories are kept under `report`/histories."""
    watcher = watcher or Quiet()
    found = Run([], {}, {})
    for asked in targets:
        watcher.target(asked.name, "starting")
        try:
            with Target(asked) as target:
                found.versions[asked.name] = target.versions
                watcher.target(asked.name, "running")
                found.cells += run_target(target, options, report, watcher)
        except (Unavailable, BrokerkitError) as error:
            found.unavailable[asked.name] = str(error)
            watcher.target(asked.name, f"unavailable: {error}")
    return found


def run_target(target: Target, options: Options, report: Path, watcher: Watcher) -> list[Cell]:
    """All cells of a running target: those that leave the broker alone at once, the others check by check."""
    plans = plan(target, options)
    watcher.planned(target.name, len(plans))
    shared = [some for some in plans if not some.spec.exclusive]
    alone = [some for some in plans if some.spec.exclusive]
    cells: dict[str, Cell] = {}

    def one(some: Plan, together: Together | None = None) -> None:
        watcher.begins(some)
        cells[some.slug] = run_cell(target, some, options, report, together)
        watcher.ended(cells[some.slug])

    most = max([options.at_once, *(len(list(group)) for _, group in groupby(alone, _check))])
    pool = ThreadPoolExecutor(most, thread_name_prefix="cell")
    try:
        # The checks at the end of the list take longest: begun first, none of them is left over alone.
        _all(pool, [partial(one, some) for some in reversed(shared)], options.at_once)
        for _, group in groupby(alone, _check):
            some_plans = list(group)
            together = Together(len(some_plans))
            _all(pool, [partial(one, some, together) for some in some_plans], len(some_plans))
    except BaseException:
        with ending_all():
            pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return [cells[some.slug] for some in plans]


def plan(target: Target, options: Options) -> list[Plan]:
    """What is to run: matching checks at the guarantees that the target offers."""
    return [
        Plan(target.name, spec, producer, consumer)
        for spec in matching(checks_of(target.plugin.name), list(options.checks))
        for producer, consumer in spec.pairs(target.capabilities)
        if not options.guarantees or producer in options.guarantees or consumer in options.guarantees
    ]


def run_cell(target: Target, some: Plan, options: Options, report: Path, together: Together | None = None) -> Cell:
    """One cell, from its set-up to its verdict. What goes wrong in it ends in the verdict, never here."""
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
    except CannotInduce as cannot:
        story.journal.write("unsupported", reason=str(cannot))
        return ""
    except DidNotFire as error:
        return f"the fault did not fire: {error}"
    except (ActorFailed, BrokerkitError, TimeoutError, OSError) as error:
        return f"the check could not be carried through: {type(error).__name__}: {error}"
    finally:
        story.finish()


def _open(story: Story, spec: CheckSpec) -> None:
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
    for event in history.of("expect"):
        word = "yes" if event.type == "ok" else "NO"
        yield (
            f"{event.get('what')}: {word} ({event.get('got')})" if event.get("got") else f"{event.get('what')}: {word}"
        )


def _check(some: Plan) -> str:
    return some.spec.name


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
