"""Every code block of the documentation works as printed.

`python` blocks of a page are one program, run in an empty folder. A further word on the fence says what else a block
needs (`rabbitmq`, `kafka`, `sqs`, `pubsub`, `fixtures`: tests/integration/docs) or that it quotes a file (`from=PATH`).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from brokerkit.plugins import manager

from .blocks import PAGES, ROOT, Block, blocks, script

ALL = [block for page in PAGES for block in blocks(page)]
WORDS = {"rabbitmq", "kafka", "sqs", "pubsub", "fixtures"}


def name(thing: Block | Path) -> str:
    return thing.name if isinstance(thing, Block) else str(thing.relative_to(ROOT))


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python" and not block.words]


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=name)
def test_the_python_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path):
    program = tmp_path / "page.py"
    program.write_text(script(page, runnable(page)))
    ended = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert ended.returncode == 0, f"{name(page)} (lines are the page's own):\n{ended.stderr}"


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "python"], ids=name)
def test_a_python_block_is_valid_and_says_what_it_needs(block: Block):
    compile(textwrap.dedent(block.code), block.name, "exec")
    unknown = [word for word in block.words if word not in WORDS and not word.startswith("from=")]
    assert not unknown, f"{block.name}: {unknown} is none of {sorted(WORDS)} or from=PATH"


@pytest.mark.parametrize("block", [block for block in ALL if any("from=" in word for word in block.words)], ids=name)
def test_a_quotation_is_what_the_file_says(block: Block):
    [path] = [word.removeprefix("from=") for word in block.words if word.startswith("from=")]
    assert block.code.strip() in (ROOT / path).read_text(), f"{block.name} does not quote {path}"


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "toml"], ids=name)
def test_a_toml_block_parses(block: Block):
    tomllib.loads(block.code)


COMMANDS = [
    pytest.param(shlex.split(line[2:], comments=True), id=f"{block.name} {line[2:]}")
    for block in ALL
    if block.language == "console"
    for line in block.code.splitlines()
    if line.startswith("$ ")
]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_console_line_names_commands_and_options_that_exist(words: list[str]):
    program, *rest = words
    if program == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(rest) <= targets, f"make has no {set(rest) - targets}"
    elif program == "brokerkit":
        assert_command(rest)
    elif program == "python":
        assert rest[0] == "-m"
        module = rest[1].replace(".", "/")
        assert (ROOT / f"{module}.py").exists() or (ROOT / module / "__main__.py").exists()
    else:
        assert program == "pip", f"no reader can check a line that runs {program}"


def assert_command(words: list[str]) -> None:
    """`brokerkit WORDS… --help` knows the command, and each of its options."""
    names = command_path(words)
    ended = subprocess.run(
        [sys.executable, "-c", "from brokerkit.cli import main; main()", *names, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert ended.returncode == 0, f"brokerkit {' '.join(names)}: {ended.stderr or ended.stdout}"
    for option in (word for word in words if word.startswith("--")):
        assert option in ended.stdout, f"brokerkit {' '.join(names)} has no {option}"


def command_path(words: list[str]) -> list[str]:
    """The words that name the command: two for a group (`conformance`, `once`), one otherwise."""
    return words[:2] if words[0] in ("conformance", "once") else words[:1]


def test_commands_are_found_through_the_hook():
    assert any("conformance" in some for some in manager().hook.brokerkit_commands())


LINKS = [
    pytest.param(page, target, id=f"{name(page)} -> {target}")
    for page in PAGES
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    if not target.startswith(("http:", "https:"))
]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_a_link_leads_somewhere(page: Path, target: str):
    assert (page.parent / target).exists(), f"{name(page)} links to {target}, which is not there"


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.parent == ROOT / "docs"], ids=name)
def test_a_page_is_listed_in_the_index(page: Path):
    assert f"({page.relative_to(ROOT / 'docs')})" in (ROOT / "docs/index.md").read_text()
