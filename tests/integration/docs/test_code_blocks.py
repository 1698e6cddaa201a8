"""The documentation's code blocks that need a broker run against a real one, at its own address."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
_FENCE = re.compile(r"^```python (?P<word>\w+)\n(?P<code>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.integration


def found(word: str) -> list[object]:
    """Blocks whose fence says that they need `word`."""
    return [
        pytest.param(match["code"], id=f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 2}")
        for page in PAGES
        for text in [page.read_text()]
        for match in _FENCE.finditer(text)
        if match["word"] == word
    ]


def run(code: str, places: Mapping[str, str], tmp_path: Path, env: Mapping[str, str] | None = None) -> None:
    for place, url in places.items():
        code = code.replace(f'"{place}"', repr(url))
    ast.parse(code)
    program = tmp_path / "block.py"
    program.write_text(code)
    ended = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, f"{ended.stderr}\n--- as run:\n{code}"


@pytest.mark.parametrize("code", found("rabbitmq"))
def test_a_block_that_needs_rabbitmq(code: str, rabbitmq, tmp_path: Path):
    parts = urlsplit(rabbitmq.url)
    address = parts.netloc.rpartition("@")[2]
    run(
        code,
        {
            "rabbitmq://localhost": rabbitmq.url,
            "amqp://localhost": f"amqp://{parts.netloc}/{parts.path.strip('/') or '%2F'}",
            "rabbitmq://nobody:wrong-password@localhost": f"rabbitmq://nobody:wrong-password@{address}",
        },
        tmp_path,
    )


@pytest.mark.parametrize("code", found("kafka"))
def test_a_block_that_needs_kafka(code: str, kafka, tmp_path: Path):
    address = urlsplit(kafka.url).netloc.rpartition("@")[2]
    run(code, {"kafka://localhost:9092": kafka.url, "localhost:9092": address}, tmp_path)


@pytest.mark.parametrize("code", found("sqs"))
def test_a_block_that_needs_sqs(code: str, sqs, tmp_path: Path):
    address = urlsplit(sqs.url).netloc.rpartition("@")[2]
    places = {"sqs://local:local@localhost:9324/us-east-1": sqs.url, "http://localhost:9324": f"http://{address}"}
    run(code, places, tmp_path)


@pytest.mark.parametrize("code", found("pubsub"))
def test_a_block_that_needs_pubsub(code: str, pubsub, tmp_path: Path):
    [address] = parse_qs(urlsplit(pubsub.url).query)["emulator_host"]
    run(code, {}, tmp_path, {"PUBSUB_EMULATOR_HOST": address})


@pytest.mark.parametrize("code", found("fixtures"))
def test_a_block_that_shows_fixtures(code: str, tmp_path: Path):
    (tmp_path / "test_block.py").write_text(code)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
