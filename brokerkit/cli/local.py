"""`brokerkit up`, `down`, `ps`, `fetch` and `env`: real brokers on this machine with one command."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import psutil
import typer

from brokerkit.errors import BrokerkitError
from brokerkit.local.chain import url_variable
from brokerkit.local.contract import Chosen, LocalBroker, StartFailed, Unavailable
from brokerkit.local.keeper import temporary_directory
from brokerkit.local.sessions import (
    Running,
    Session,
    file_of,
    forget,
    load,
    own,
    process_of,
    save,
    sessions,
    state_folder,
)
from brokerkit.local.targets import target, targets


@dataclass(frozen=True)
class Options:
    """How brokers are to be started."""

    nodes: int | None
    secure: bool
    settings: dict[str, str]
    timeout: float


def up(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[TARGET]", help="For example: kafka rabbitmq rabbitmq:3.10")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, max=5, metavar="N", help="Nodes of each broker; default: the target's.")
    ] = None,
    secure: Annotated[bool, typer.Option("--secure", help="TLS, and a user with a generated password.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when they serve; `brokerkit down` ends them.")
    ] = False,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Use the broker that runs there, instead of starting one.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the broker's own configuration; repeatable."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long each broker may take to start.")
    ] = 90.0,
) -> None:
    """Start real brokers and print their URLs.

    They run until Ctrl-C and leave nothing behind, not even when this command is killed. What they need is fetched
    once, without root and without Docker where there is a way. Without a TARGET, lists the targets there are.
    """
    if not names:
        typer.echo("\n".join(targets()))
        return
    if url is not None:
        if len(names) != 1:
            _fail("--url names one broker, so give one TARGET with it", 2)
        os.environ[url_variable(names[0])] = url
    options = Options(nodes, secure, _settings(setting or []), timeout)
    try:
        brokers = {name: target(name) for name in dict.fromkeys(names)}
        chosen = {name: broker.provision() for name, broker in brokers.items()}
    except (BrokerkitError, Unavailable) as error:
        _fail(str(error), 1)
    for name, choice in chosen.items():
        passed = "".join(f"; not {reason}" for reason in choice.passed)
        typer.secho(f"{name}: {choice.provider}, {choice.why}{passed}", err=True, dim=True)
    if detach and os.environ.get(_SUPERVISOR) is None:
        _detach(list(brokers), options)
        return
    _keep_up(brokers, chosen, options)


def down(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[TARGET]", help="Which; all that are detached if none is named.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="How long they may take to end.")] = 30.0,
) -> None:
    """End brokers that `brokerkit up --detach` started, with their data."""
    running, stale = sessions()
    _tell_stale(stale)
    wanted = set(names or [])
    ending = []
    for session in running:
        has = {broker.target for broker in session.brokers}
        if not session.detached and has & wanted:
            _fail(f"{', '.join(sorted(has))} runs in the foreground of process {session.pid}: end it there", 1)
        if session.detached and (not wanted or has & wanted):
            ending.append(session)
    missing = wanted - {broker.target for session in ending for broker in session.brokers}
    for session in ending:
        _end(session, timeout)
        typer.echo("\n".join(f"{broker.target}  down" for broker in session.brokers))
    if missing:
        _fail(f"not up: {', '.join(sorted(missing))}", 1)
    if not ending:
        typer.echo("nothing is up")


def ps() -> None:
    """List the brokers that are up."""
    running, stale = sessions()
    _tell_stale(stale)
    rows = [
        (
            broker.target,
            broker.url,
            f"{broker.product} {broker.version}",
            broker.provider,
            "detached" if session.detached else "foreground",
            f"process {session.pid}",
            f"up {_duration(time.time() - session.started)}",
        )
        for session in running
        for broker in session.brokers
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not rows:
        typer.echo("nothing is up", err=True)


def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[TARGET]", help="Which; every one that there is if none is named.")
    ] = None,
) -> None:
    """Fetch what brokers need, and start none: for an image, or before tests whose time is limited.

    Fails when a TARGET that was named cannot be had.
    """
    missing = []
    for name in dict.fromkeys(names or targets()):
        try:
            choice = target(name).provision()
        except (BrokerkitError, Unavailable) as error:
            typer.secho(f"{name}: {error}", err=True)
            missing.append(name)
        else:
            typer.echo(f"{name}: {choice.product} {choice.version}, {choice.provider}, {choice.why}")
    if names and missing:
        _fail(f"not to be had: {', '.join(missing)}", 1)


def env(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[TARGET]", help="Which; all that are up if none is named.")
    ] = None,
) -> None:
    """Print what a shell has to export so that other programs talk to the brokers that are up.

    For `eval "$(brokerkit env)"`: the URLs for brokerkit itself, and what the brokers' own clients and tools read.
    """
    running, stale = sessions()
    _tell_stale(stale)
    brokers = {broker.target: broker for session in running for broker in session.brokers}
    missing = set(names or []) - brokers.keys()
    if missing or not brokers:
        _fail(f"not up: {', '.join(sorted(missing))}" if missing else "nothing is up", 1)
    for name in names or brokers:
        found = {url_variable(name): brokers[name].url, **brokers[name].environment}
        typer.echo("\n".join(f"export {key}={shlex.quote(value)}" for key, value in found.items()))


_SUPERVISOR = "BROKERKIT_SUPERVISOR"
"""Set in the process that keeps a detached broker up."""


def _keep_up(brokers: dict[str, LocalBroker], chosen: dict[str, Chosen], options: Options) -> None:
    """Starts the brokers and keeps them until a signal comes."""
    session = own(detached=os.environ.get(_SUPERVISOR) is not None)
    with _signals_end_it(), ExitStack() as stack:
        stack.callback(forget, session.pid)
        try:
            for name, broker in brokers.items():
                stack.callback(broker.stop)
                started = time.monotonic()
                _start(stack, broker, options)
                running = _running(name, broker, chosen[name], options)
                session = replace(session, brokers=[*session.brokers, running])
                save(session)
                typer.echo(_line(running, chosen[name], time.monotonic() - started))
                sys.stdout.flush()
            if any(broker.pids() for broker in brokers.values()):
                _wait(brokers)
        except (BrokerkitError, StartFailed, Unavailable) as error:
            save(replace(session, failure=str(error)))
            if session.detached:
                time.sleep(1.0)  # for the one who waits for this session to read why
            _fail(str(error), 1)
        except _Ended:
            typer.secho("ending", err=True, dim=True)


def _start(stack: ExitStack, broker: LocalBroker, options: Options) -> None:
    directory = stack.enter_context(temporary_directory())
    stack.callback(broker.stop)  # before the directory goes
    broker.start(
        directory,
        nodes=options.nodes or broker.default_nodes,
        secure=options.secure,
        settings=options.settings,
        timeout=options.timeout,
    )


def _running(name: str, broker: LocalBroker, choice: Chosen, options: Options) -> Running:
    return Running(
        name,
        broker.url(),
        choice.product,
        choice.version,
        choice.provider,
        broker.pids(),
        asdict(options),
        broker.environment(),
    )


def _wait(brokers: dict[str, LocalBroker]) -> None:
    """Returns never by itself: says when a node has died, until a signal ends it."""
    told: set[tuple[str, int]] = set()
    while True:
        for name, broker in brokers.items():
            for node, pid in enumerate(broker.pids()):
                if not pid and (name, node) not in told:
                    told.add((name, node))
                    typer.secho(f"{name}: node {node + 1} has ended", err=True, fg="red")
        time.sleep(1.0)


def _detach(names: list[str], options: Options) -> None:
    """Starts one process per broker that outlives this one, and waits until each serves."""
    up_already = {broker.target: broker for session in sessions()[0] for broker in session.brokers if session.detached}
    started: dict[str, subprocess.Popen[bytes]] = {}
    failed = False
    begun = time.monotonic()
    for name in names:
        if name not in up_already:
            started[name] = _supervisor(name, options)
        elif dict(up_already[name].options) == asdict(options):
            typer.echo(f"{name}  up already  {up_already[name].url}")
        else:
            failed = True
            typer.secho(f"{name} is up already with other options: brokerkit down {name}", err=True, fg="red")
    for name, process in started.items():
        session = _awaited(process, options.timeout + 30.0)
        if session is None or not session.brokers:
            failed = True
            reason = session.failure if session is not None else f"its process ended; see {_log_of(name)}"
            typer.secho(f"{name}: {reason}", err=True, fg="red")
            continue
        running = session.brokers[0]
        seconds = time.monotonic() - begun
        typer.echo(
            f"{name}  ready  {running.url}  {running.product} {running.version}, {running.provider}, {seconds:.1f} s"
        )
    if failed:
        raise typer.Exit(1)


def _supervisor(name: str, options: Options) -> subprocess.Popen[bytes]:
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [sys.executable, "-m", "brokerkit.cli", "up", name, f"--timeout={options.timeout}"]
    if options.nodes:
        command.append(f"--nodes={options.nodes}")
    if options.secure:
        command.append("--secure")
    command += [f"--set={key}={value}" for key, value in options.settings.items()]
    path = _log_of(name)
    path.touch(mode=0o600)
    with path.open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, _SUPERVISOR: "1"},
            cwd="/",
            start_new_session=True,
        )


def _awaited(process: subprocess.Popen[bytes], timeout: float) -> Session | None:
    """The session of a supervisor that has started its broker or failed; None if it ended without a word."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        session = load(process.pid)
        if session is not None and (session.brokers or session.failure):
            return session
        if process.poll() is not None:
            return session
        time.sleep(0.05)
    process.terminate()
    return None


def _end(session: Session, timeout: float) -> None:
    """Ends a session and waits until its brokers are gone too."""
    process = process_of(session)
    if process is not None:
        process.terminate()
        try:
            process.wait(timeout)
        except psutil.TimeoutExpired:
            process.kill()  # its death watch does the rest
    deadline = time.monotonic() + 15.0
    pids = [pid for broker in session.brokers for pid in broker.pids if pid]
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    for path in (file_of(session.pid), *(_log_of(broker.target) for broker in session.brokers)):
        path.unlink(missing_ok=True)


def _log_of(name: str) -> Path:
    """What the process that keeps a detached broker up says."""
    return state_folder() / f"{name.replace(':', '-')}.log"


class _Ended(BaseException):
    """A signal asked this program to end."""


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise _Ended, once; what follows is not interrupted by another."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise _Ended

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _line(running: Running, choice: Chosen, seconds: float) -> str:
    about = f"{running.product} {running.version}, {choice.provider}: {choice.why}, {seconds:.1f} s"
    return f"{running.target}  ready  {running.url}  {about}"


def _settings(given: list[str]) -> dict[str, str]:
    settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            _fail(f"--set takes NAME=VALUE, not {text!r}", 2)
        settings[name] = value
    return settings


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{int(seconds)} s" if minutes < 2 else f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"


def _tell_stale(stale: list[Session]) -> None:
    for session in stale:
        names = ", ".join(broker.target for broker in session.brokers) or "a session"
        typer.secho(f"stale entry of {names} removed: process {session.pid} is gone", err=True, dim=True)


def _fail(text: str, code: int) -> NoReturn:
    typer.secho(text, err=True, fg="red")
    raise typer.Exit(code)
