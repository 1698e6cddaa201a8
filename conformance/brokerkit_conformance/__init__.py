"""Induces failures against a real broker and holds its claims against what was seen."""

from __future__ import annotations

from collections.abc import Mapping

from brokerkit.plugins import hookimpl


@hookimpl
def brokerkit_commands() -> Mapping[str, str]:
    return {
        "conformance": "brokerkit_conformance.cli:app",
        "demo": "brokerkit_conformance.demo.command:app",
        "once mistakes": "brokerkit_conformance.demo.mistakes_command:app",
    }
