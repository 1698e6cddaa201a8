"""The program without brokers: help, versions, mistakes, and commands of other distributions."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from brokerkit.cli import app as program
from brokerkit.cli.app import app


@pytest.fixture
def run():
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_version_is_the_distributions(run):
    from importlib.metadata import version

    assert run("--version").output == f"brokerkit {version('brokerkit-mq')}\n"


def test_help_lists_own_commands_and_those_of_other_distributions(run):
    said = run("--help").output
    for name in ("up", "down", "ps", "fetch", "env", "conformance"):
        assert f"\n  {name} " in said


def test_up_without_a_target_lists_the_targets(run):
    assert {"kafka", "rabbitmq", "rabbitmq:3.10", "sqlite"} <= set(run("up").output.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "nosuch"], "no local broker is called 'nosuch'; there are: "),
        (["up", "kafka", "--set", "novalue"], "--set takes NAME=VALUE, not 'novalue'"),
        (["up", "kafka", "rabbitmq", "--url", "kafka://h"], "--url names one broker"),
        (["up", "kafka", "--nodes", "0"], "'--nodes'"),
        (["fetch", "nosuch"], "not to be had: nosuch"),
        (["nosuch"], "No such command 'nosuch'"),
    ],
)
def test_a_mistake_is_named(run, arguments, said):
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert said in result.output


def test_a_command_of_another_distribution_is_imported_only_when_it_is_asked_for(run, monkeypatch):
    imported = []
    other = typer.Typer()

    @other.command()
    def hello() -> None:
        typer.echo("hello from elsewhere")

    def load(name: str):
        imported.append(name)
        return type("Module", (), {"app": other})

    monkeypatch.setattr(program, "_offered", lambda: {"hello": "elsewhere.cli:app"})
    monkeypatch.setattr(program.importlib, "import_module", load)
    run("--version")
    run("up")
    assert imported == []
    assert run("hello").output == "hello from elsewhere\n"
    assert imported == ["elsewhere.cli"]


def test_a_command_that_cannot_be_imported_says_what_it_needs_and_harms_no_other(run, monkeypatch):
    monkeypatch.setattr(program, "_offered", lambda: {"broken": "no_such_package.cli:app"})
    result = run("broken")
    assert result.exit_code == 3
    assert "`brokerkit broken` needs no_such_package, which is not installed" in result.output
    assert "  up " in run("--help").output


def test_a_command_of_another_distribution_may_be_one_of_a_group(run, monkeypatch):
    monkeypatch.setattr(program, "_offered", lambda: {"once broken": "no_such_package.cli:app"})
    assert "  broken " in run("once", "--help").output
    assert "needs no_such_package" in run("once", "broken").output
    assert "broken" not in run("--help").output


def test_without_its_packages_the_program_names_the_extra_that_brings_them():
    code = "import sys; sys.modules['typer'] = None; from brokerkit.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "pip install 'brokerkit-mq[local]'" in done.stderr
    assert "Traceback" not in done.stderr
