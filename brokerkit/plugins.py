"""How plugins are found: pluggy hooks, discovered through the entry-point group `brokerkit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy
from pydantic import BaseModel, ConfigDict, ValidationError

from brokerkit.errors import ConfigurationError

if TYPE_CHECKING:
    from brokerkit.driver import Codec, Driver
    from brokerkit.local.contract import LocalBroker

hookspec = pluggy.HookspecMarker("brokerkit")
hookimpl = pluggy.HookimplMarker("brokerkit")

Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Base of a plugin's settings: the URL's query parameters and `connect`'s keywords, typed and checked.

    Fields named here are brokerkit's own for that broker. `client` collects the `client.NAME=value` parameters:
    the client library's own options, passed through. Field names are used as parameter names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    client: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Url:
    """The parts of a broker URL that are not query parameters. The repr shows no password."""

    scheme: str
    netloc: str
    path: str
    username: str | None = None
    password: str | None = None
    hosts: tuple[tuple[str, int | None], ...] = ()

    def __repr__(self) -> str:
        hosts = ",".join(host if port is None else f"{host}:{port}" for host, port in self.hosts)
        user = "" if self.username is None else f"{self.username}:***@"
        return f"Url({self.scheme}://{user}{hosts}{self.path})"


LocalTargets = Callable[[], "Mapping[str, Callable[[], LocalBroker]]"]
"""Makers of local brokers or stores, by target name."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """One broker, as its distribution offers it."""

    name: str
    schemes: tuple[str, ...]
    settings: type[Settings]
    open: Callable[[Url, Any], Driver]
    """Makes the driver from the URL and a validated `settings`; does not connect yet."""
    codec: Callable[[], Codec] | None = None
    local: LocalTargets | None = None
    """Local brokers by target name (`rabbitmq`, `rabbitmq:3.10`), the first being the default. Each makes one
    that is not started yet; imported only when asked for."""
    checks: str | None = None
    """Module with conformance checks of this broker's own hazards."""
    in_matrix: bool = True


class Hooks:
    @hookspec
    def brokerkit_plugins(self) -> Sequence[Plugin]:
        """The brokers that this distribution brings."""
        raise AssertionError

    @hookspec
    def brokerkit_stores(self) -> LocalTargets:
        """Local stores that this distribution can start, in the shape of `Plugin.local`: a database is no broker, and
        its life on this machine is the same."""
        raise AssertionError

    @hookspec
    def brokerkit_store_codecs(self) -> Mapping[str, Callable[[], Codec]]:
        """By URL scheme, what reads a store's protocol for the fault proxy: `commit` and `commit_answer` are asked
        for."""
        raise AssertionError

    @hookspec
    def brokerkit_commands(self) -> Mapping[str, str]:
        """Commands for the `brokerkit` program: name to `module:typer_app`. `once NAME` is a command of `brokerkit
        once`."""
        raise AssertionError


@cache
def manager() -> pluggy.PluginManager:
    """The plugin manager with everything installed registered."""
    found = pluggy.PluginManager("brokerkit")
    found.add_hookspecs(Hooks)
    found.load_setuptools_entrypoints("brokerkit")
    return found


def plugins() -> dict[str, Plugin]:
    """Installed plugins by name."""
    return {plugin.name: plugin for some in manager().hook.brokerkit_plugins() for plugin in some}


def plugin_for(scheme: str) -> Plugin:
    """The plugin that serves a URL scheme; raises ConfigurationError that lists the schemes there are."""
    known = {scheme: plugin for plugin in plugins().values() for scheme in plugin.schemes}
    if scheme not in known:
        raise ConfigurationError(
            f"no plugin serves {scheme}:// URLs; installed: {', '.join(sorted(known)) or 'none'}. "
            f"Install one, for example: pip install 'brokerkit-mq[{scheme}]'"
        )
    return known[scheme]


def checked(model: type[Model], values: Mapping[str, Any], what: str, others: str = "") -> Model:
    """`values` as the settings of `what`. Raises ConfigurationError that says what is wrong with each of them, and for
    an unknown one which there are; `others` names those that are no fields."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
    known = ", ".join(sorted(name for name in model.model_fields if name != "client"))
    sentences = []
    for problem in problems:
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            sentences.append(f"unknown option {name!r} for {what}; known: {known}{others}")
        else:
            sentences.append(f"option {name!r} for {what}: {problem['msg']}")
    raise ConfigurationError("; ".join(sentences))
