"""What a check declares, and how checks are found: those of this folder and those that plugins bring."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from brokerkit.plugins import plugins

if TYPE_CHECKING:
    from brokerkit.driver import Capabilities
    from brokerkit.guarantees import Claim, Properties
    from brokerkit_conformance.story import Story

Varies = Literal["producer", "consumer", "both", "transactions", "store"]
_AT_LEAST_ONCE = "at_least_once"
_EXACTLY_ONCE = "exactly_once"


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """One check. `run` tells it as a story; `asked` says in a sentence what it asks of the broker.

    - `point`: the failure point whose claim is judged.
    - `varies`: whose guarantee the failure is about; the other end stays at least once. `both`: each in turn.
      `transactions`: what is received is committed with what is sent; it runs once, exactly once. `store`: its effects
      are rows in a store; it runs once with each store that the run names, exactly once.
    - `witness`: what must be *seen*, `loss` or `duplicate`, by the guarantee that varies, where the plugin's claim
      says it is expected.
    - `needs_fault`: without evidence that the fault fired, nothing is proved.
    - `exclusive`: it breaks the broker that the others share, and runs alone.
    - `trials`: how often, at its smallest honest size.
    - `subscriptions`: those that owe every confirmed message.
    - `claimed_if`: whether a plugin of these properties states anything here; what it does not state is observed
      and not judged.
    - `claimed_at`: the guarantees of the end that varies at which anything is stated here; none named: at all.
    - `witness_if`: whether a plugin of these properties owes the witness even where it claims only `possible`.
    - `keys`: all that it has in a store are idempotency keys; its effects are elsewhere, and any store of keys will do.
    - `of_store`: what becomes of a store's claim under this failure; only of those that vary by `store`.
    """

    name: str
    point: str
    asked: str
    run: Callable[[Story], None]
    varies: Varies = "consumer"
    witness: Mapping[str, str] = field(default_factory=dict)
    needs_fault: bool = True
    exclusive: bool = False
    trials: int = 3
    subscriptions: tuple[str, ...] = ("work",)
    claimed_if: Callable[[Properties], bool] = lambda properties: True
    claimed_at: tuple[str, ...] = ()
    witness_if: Callable[[Properties], bool] = lambda properties: True
    keys: bool = False
    of_store: Callable[[Claim], Claim] = lambda claim: claim

    @property
    def in_store(self) -> bool:
        return self.varies == "store"

    def pairs(self, capabilities: Capabilities) -> list[tuple[str, str]]:
        """The (producer, consumer) guarantees to run at: every one that the target offers at the varying end."""
        producers = [str(g) for g in sorted(capabilities.producer_guarantees)]
        consumers = [str(g) for g in sorted(capabilities.consumer_guarantees) if g != "exactly_once"]
        if self.in_store:
            return [(_AT_LEAST_ONCE, _EXACTLY_ONCE)]
        if self.varies == "transactions":
            return [(_EXACTLY_ONCE if _EXACTLY_ONCE in producers else _AT_LEAST_ONCE, _EXACTLY_ONCE)]
        found = []
        if self.varies in ("producer", "both"):
            found += [(producer, _AT_LEAST_ONCE) for producer in producers]
        if self.varies in ("consumer", "both"):
            found += [(_AT_LEAST_ONCE, consumer) for consumer in consumers]
        return list(dict.fromkeys(found))

    def witness_for(self, producer: str, consumer: str, properties: Properties) -> str | None:
        """What must be seen at this pair of guarantees."""
        varying = self._varying(producer, consumer)
        return self.witness.get(varying) if self.witness_if(properties) else None

    def claimed(self, producer: str, consumer: str, properties: Properties) -> bool:
        """Whether a plugin of these properties states anything here, at this pair of guarantees."""
        at = not self.claimed_at or self._varying(producer, consumer) in self.claimed_at
        return at and self.claimed_if(properties)

    def _varying(self, producer: str, consumer: str) -> str:
        return producer if self.varies == "producer" else consumer


def check(
    *, point: str, asked: str, name: str | None = None, **options: Any
) -> Callable[[Callable[[Story], None]], CheckSpec]:
    """Makes a check of the function below, under its own name."""

    def made(run: Callable[[Story], None]) -> CheckSpec:
        return CheckSpec(name or run.__name__, str(point), asked, run, **options)

    return made


def checks() -> dict[str, CheckSpec]:
    """The suite's own checks by name, in the order of their files' names' declaration."""
    packages = ("brokerkit_conformance.checks", "brokerkit_conformance.checks.once")
    return {spec.name: spec for package in packages for spec in _all_of(package)}


def checks_of(plugin: str) -> dict[str, CheckSpec]:
    """The suite's checks, and the ones that this plugin's distribution brings for its own hazards."""
    found = checks()
    module = plugins()[plugin].checks
    if module is not None:
        found.update({spec.name: spec for spec in _all_of(module)})
    return found


def matching(found: Mapping[str, CheckSpec], globs: list[str]) -> list[CheckSpec]:
    return [spec for spec in found.values() if not globs or any(fnmatchcase(spec.name, glob) for glob in globs)]


def _all_of(package: str) -> Iterator[CheckSpec]:
    module = importlib.import_module(package)
    yield from _in(module)
    order: Sequence[str] = getattr(module, "ORDER", ())
    names = [some.name for some in pkgutil.iter_modules(getattr(module, "__path__", [])) if not some.ispkg]
    for name in sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name)):
        yield from _in(importlib.import_module(f"{package}.{name}"))


def _in(module: Any) -> Iterator[CheckSpec]:
    return (value for value in vars(module).values() if isinstance(value, CheckSpec))
