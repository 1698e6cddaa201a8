"""Plugins are found without paying for them."""

import subprocess
import sys


def test_finding_plugins_loads_no_client_library():
    program = (
        "import sys, brokerkit.plugins\n"
        "print(sorted(brokerkit.plugins.plugins()))\n"
        "print([name for name in ('pika', 'confluent_kafka', 'rich', 'typer', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    found, loaded = done.stdout.splitlines()
    for name in ("kafka", "memory", "rabbitmq", "sqlite"):
        assert repr(name) in found
    assert loaded == "[]"
