"""The program's commands: its own, and those that other distributions bring."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from brokerkit.cli import once
from brokerkit.cli.local import down, env, fetch, ps, up
from brokerkit.cli.relay import relay
from brokerkit.plugins import manager


class Commands(typer.core.TyperGroup):
    """Own commands first; commands of other distributions are imported when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *(name for name in self._others(ctx) if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is None and (place := self._others(ctx).get(cmd_name)):
            command = _load(cmd_name, place)
        return command

    def _others(self, ctx: Any) -> dict[str, str]:
        """Name to `module:app` of what is offered to this group."""
        group = [] if ctx.parent is None else [self.name]
        split = [(*words.split(), place) for words, place in _offered().items()]
        return {name: place for *into, name, place in split if into == group}


app = typer.Typer(
    name="brokerkit",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"brokerkit {version('brokerkit-mq')}")
        raise typer.Exit()


@app.callback()
def brokerkit(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One producer/consumer interface for message brokers, and real brokers to try it on."""


app.command()(up)
app.command()(down)
app.command()(ps)
app.command()(fetch)
app.command()(env)
app.command()(relay)
app.add_typer(once.app, name="once", cls=Commands)


def _offered() -> dict[str, str]:
    """Words to `module:app` of the commands that installed distributions bring."""
    return {words: place for some in manager().hook.brokerkit_commands() for words, place in some.items()}


def _load(name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        return _broken(name, f"`brokerkit {name}` needs {error.name or error}, which is not installed")
    command = typer.main.get_command(found) if isinstance(found, typer.Typer) else found
    command.name = name
    return command


def _broken(name: str, reason: str) -> Any:
    """A command that says why it cannot run; the others go on working."""
    broken = typer.Typer(add_completion=False)

    @broken.command(help=f"Not available: {reason}.")
    def fail() -> None:
        typer.echo(reason, err=True)
        raise typer.Exit(3)

    command = typer.main.get_command(broken)
    command.name = name
    return command
