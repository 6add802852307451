"""Name to function, described by its signature: the signature is the schema of a method's options."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from plait.errors import RecipeError, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """One keyword-only parameter of a registered function: a recipe field."""

    name: str
    annotation: Any
    default: Any
    required: bool


@dataclass(frozen=True)
class Entry(Generic[F]):
    """A registered function with what its signature and docstring say of it."""

    name: str
    function: F
    summary: str
    inputs: tuple[str, ...]
    options: Mapping[str, Option]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises `RecipeError` when an option is unknown to this function."""
        for name in options:
            if name not in self.options:
                raise RecipeError(f"{self.name} has no option {name!r}{did_you_mean(name, self.options)}")

    def check_values(self, options: Mapping[str, Any]) -> None:
        """Raises `RecipeError` when an option is unknown, of the wrong kind, or outside the fact `limits`."""
        self.check(options)
        for name, value in options.items():
            _check_value(self.name, self.options[name], value)
            low, high = self.facts.get("limits", {}).get(name, (-math.inf, math.inf))
            if not isinstance(value, str) and not low <= value <= high:
                raise RecipeError(f"{self.name}: {name} is {value} (expected {low:g} to {high:g})")


def _check_value(entry: str, option: Option, value: Any) -> None:
    if get_origin(option.annotation) is Literal:
        if value not in get_args(option.annotation):
            hint = did_you_mean(str(value), map(str, get_args(option.annotation)))
            raise RecipeError(f"{entry}: {option.name} is {value!r}{hint}")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RecipeError(f"{entry}: {option.name} is {value!r} (expected a number)")


def canonical(name: str) -> str:
    """Returns the registered spelling of a name: the command line writes `mask-nodes` for `mask_nodes`."""
    return name.strip().lower().replace("-", "_")


def describe(name: str, function: F, facts: Mapping[str, Any]) -> Entry[F]:
    """Returns the entry of a function: positional parameters are inputs, keyword-only ones are options."""
    parameters = inspect.signature(function).parameters.values()
    hints = get_type_hints(function)
    options = {
        p.name: Option(p.name, hints.get(p.name, Any), p.default, p.default is p.empty)
        for p in parameters
        if p.kind is p.KEYWORD_ONLY
    }
    inputs = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
    summary = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
    return Entry(name, function, summary, inputs, MappingProxyType(options), MappingProxyType(dict(facts)))


class Registry(Generic[F]):
    """The named functions of one kind; `package` is imported whole on first use, so that a method is one file."""

    def __init__(self, kind: str, package: str | None = None) -> None:
        """Makes an empty registry of `kind` (a word for messages) filled by importing `package`."""
        self.kind = kind
        self._package = package
        self._entries: dict[str, Entry[F]] = {}

    def register(self, name: str, **facts: Any) -> Callable[[F], F]:
        """Returns a decorator that registers a function under `name` with facts such as `paper=`."""

        def decorate(function: F) -> F:
            if name in self._entries and self._entries[name].function is not function:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = describe(name, function, facts)
            return function

        return decorate

    def _load(self) -> None:
        if self._package is None:
            return
        package, self._package = importlib.import_module(self._package), None
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)

    def __getitem__(self, name: str) -> Entry[F]:
        self._load()
        found = self._entries.get(canonical(name))
        if found is None:
            raise RecipeError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._entries)}")
        return found

    def __contains__(self, name: object) -> bool:
        self._load()
        return isinstance(name, str) and canonical(name) in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self._load()
        return len(self._entries)
