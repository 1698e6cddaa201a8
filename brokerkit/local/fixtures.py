"""What the pytest fixtures hand out: running brokers, and names that no other test uses."""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack
from types import TracebackType
from typing import NoReturn

import pytest

from brokerkit.errors import ConfigurationError
from brokerkit.local.contract import LocalBroker, Unavailable
from brokerkit.local.keeper import keeper, temporary_directory
from brokerkit.local.targets import target


class TestBroker:
    """A broker that runs for the tests of one session."""

    __test__ = False  # not a test class, whatever its name says

    def __init__(self, local: LocalBroker) -> None:
        self.local = local
        """Its life cycle: a test that kills or pauses a node restores it."""

    @property
    def url(self) -> str:
        return self.local.url()

    def name(self, topic: str = "topic") -> str:
        """A topic name that begins with `topic` and that nobody else uses; another one at each call."""
        return f"{topic[:29]}-{secrets.token_hex(4)}"

    def __repr__(self) -> str:
        return f"TestBroker({self.local.name})"


class Brokers:
    """The brokers of one test session, each started when it is first asked for and ended with the session."""

    def __init__(self) -> None:
        if "PYTEST_XDIST_WORKER" in os.environ:
            # A worker whose pytest was killed notices late, in the middle of a test after 5 to 15 seconds.
            keeper().with_parent()
        self._stack = ExitStack()
        self._running: dict[tuple[str, int, bool], TestBroker] = {}
        self._unavailable: dict[str, Unavailable] = {}

    def get(self, name: str, *, nodes: int | None = None, secure: bool = False) -> TestBroker:
        """A running broker of that target. Skips or fails the test when there is none to be had."""
        local = _target(name)
        key = name, nodes or local.default_nodes, secure
        if key not in self._running:
            if name in self._unavailable:
                _give_up(self._unavailable[name])
            try:
                local.provision()
            except Unavailable as reason:
                self._unavailable[name] = reason
                _give_up(reason)
            directory = self._stack.enter_context(temporary_directory())
            self._stack.callback(local.stop)
            local.start(directory, nodes=key[1], secure=secure)
            self._running[key] = TestBroker(local)
        return self._running[key]

    def __enter__(self) -> Brokers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _target(name: str) -> LocalBroker:
    try:
        return target(name)
    except ConfigurationError as error:
        reason = str(error)
    pytest.fail(reason, pytrace=False)


def _give_up(reason: Unavailable) -> NoReturn:
    if os.environ.get("CI", "").lower() in ("", "0", "false") or reason.excusable:
        pytest.skip(str(reason))
    pytest.fail(f"in CI a broker that cannot be had is a failure: {reason}", pytrace=False)
