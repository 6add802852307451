"""Name to function, described by its signature: the signature is the schema of a method's options."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from plait.errors import RecipeError, did_you_mean, listed

if TYPE_CHECKING:
    from pydantic import BaseModel

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
logger = logging.getLogger("plait")


class Above(NamedTuple):
    """Limits that a number must not reach; a plain pair (low, high) includes both ends."""

    low: float
    high: float = math.inf


Limits = Above | tuple[float, float]


@dataclass(frozen=True)
class Option:
    """One keyword-only parameter of a registered function: a recipe field."""

    name: str
    annotation: Any
    default: Any
    required: bool
    meaning: str = ""
    limits: Limits | None = None

    @property
    def choices(self) -> tuple[Any, ...]:
        """Returns the values to choose from; none where any of the type will do."""
        return get_args(self.annotation) if get_origin(self.annotation) is Literal else ()

    @property
    def type(self) -> str:
        """Returns the type as a user would write it: `float`, or `tensor | model` for a choice."""
        return spelled(self.annotation)

    @property
    def bounds(self) -> str:
        """Returns what the limits allow, such as `0 to 1` or `above 0`; nothing where there are none."""
        if self.limits is None:
            return ""
        low, high = self.limits
        if isinstance(self.limits, Above):
            return f"above {low:g}" + (f" and below {high:g}" if math.isfinite(high) else "")
        return f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more"

    def field(self) -> tuple[Any, Any]:
        """Returns type and default as `pydantic.create_model` takes them: numbers are finite, nothing is converted."""
        from pydantic import Field

        facts: dict[str, Any] = {"description": self.meaning} if self.meaning else {}
        kinds = {kind for kind in _parts(self.annotation) if kind is not type(None)}
        if kinds <= {int, float}:
            facts["strict"] = True
            if kinds == {float}:
                facts["allow_inf_nan"] = False
        elif kinds == {bool}:
            facts["strict"] = True
        if self.limits is not None:
            names = ("gt", "lt") if isinstance(self.limits, Above) else ("ge", "le")
            facts |= {n: v for n, v in zip(names, self.limits, strict=True) if math.isfinite(v)}
        default = ... if self.required else self.default
        return Annotated[self.annotation, Field(**facts)], default

    def refusal(self, value: Any, kind: str) -> str:
        """Returns what is wrong with a value, after what kind of error pydantic found."""
        said = f"{self.name} is {value!r}"
        if kind == "missing":
            return f"{self.name} is missing"
        if self.choices:
            hint = did_you_mean(str(value), map(str, self.choices))
            return said + (hint if "did you mean" in hint else f"; expected {either(map(str, self.choices))}")
        kinds = _parts(self.annotation)
        if bool in kinds:
            return f"{said}; expected true or false"
        number = "a whole number" if int in kinds else "a number" if float in kinds else spelled(self.annotation)
        if isinstance(self.limits, Above):
            return f"{said}; expected {number} {self.bounds}"
        in_limits = kind in {"greater_than_equal", "less_than_equal"}
        return f"{said} (expected {self.bounds if in_limits else number})"


def _parts(annotation: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (UnionType, Union) else (annotation,)


def either(words: Iterable[str]) -> str:
    """Returns words to choose from, as a sentence lists them: `a, b or c`."""
    *others, last = sorted(words)
    return f"{', '.join(others)} or {last}" if others else last


def spelled(annotation: Any) -> str:
    """Returns an annotation as a user would write it: `float`, or `global | tensor` for a choice."""
    if choices := getattr(annotation, "__args__", None):
        return " | ".join(c.__name__ if isinstance(c, type) else str(c) for c in choices).replace("NoneType", "none")
    return str(getattr(annotation, "__name__", annotation))


def option_model(name: str, options: Mapping[str, Option]) -> type[BaseModel]:
    """Returns the pydantic model of options: an unknown one is refused, numbers stay as they were given."""
    from pydantic import ConfigDict, create_model

    config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=())
    fields: dict[str, Any] = {option.name: option.field() for option in options.values()}
    return create_model(name, __config__=config, **fields)


def refused(options: Mapping[str, Option], model: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """Returns all that is wrong with the values of options, in our own words and in the order of the options."""
    from pydantic import ValidationError

    try:
        model.model_validate(dict(values))
    except ValidationError as problem:
        found = {str(error["loc"][0]): error for error in problem.errors()}
        return [
            f"no option {name!r}{did_you_mean(name, options)}" if name not in options
            else options[name].refusal(values.get(name), error["type"])
            for name, error in found.items()
        ]  # fmt: skip
    return []


@dataclass(frozen=True)
class Entry(Generic[F]):
    """A registered function with what its signature and docstring say of it."""

    name: str
    function: F
    summary: str
    inputs: tuple[str, ...]
    options: Mapping[str, Option]
    facts: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "method"

    @cached_property
    def model(self) -> type[BaseModel]:
        """The pydantic model of the options, made of the signature."""
        return option_model(self.name, self.options)

    @property
    def when(self) -> str:
        """Returns when to use it, in one sentence; nothing where its author does not say."""
        return str(self.facts.get("when", ""))

    @property
    def paper(self) -> str | None:
        """Returns the paper it comes from, such as `arXiv:2111.09832`."""
        return self.facts.get("paper")

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises `RecipeError` when an option is unknown to this function."""
        for name in options:
            if name not in self.options:
                raise RecipeError(f"{self.name} has no option {name!r}{did_you_mean(name, self.options)}")

    def check_values(self, options: Mapping[str, Any]) -> None:
        """Raises `RecipeError` when an option is unknown, of the wrong kind, or outside the fact `limits`."""
        self.check(options)
        if problems := refused(self.options, self.model, options):
            hint = f" ({self.facts['hint']})" if self.facts.get("hint") else ""
            raise RecipeError(f"{self.kind} {self.name}: {listed(problems)}{hint}")


def canonical(name: str) -> str:
    """Returns the registered spelling of a name: the command line writes `mask-nodes` for `mask_nodes`."""
    return name.strip().lower().replace("-", "_")


def describe(name: str, function: F, facts: Mapping[str, Any], kind: str = "method") -> Entry[F]:
    """Returns the entry of a function: positional parameters are inputs, keyword-only ones are options."""
    parameters = inspect.signature(function).parameters.values()
    inputs = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
    summary = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
    options = {p.name: p for p in options_of(function, facts.get("limits", {})) if p.name not in inputs}
    return Entry(name, function, summary, inputs, MappingProxyType(options), MappingProxyType(dict(facts)), kind)


def options_of(function: Callable[..., Any], limits: Mapping[str, Limits]) -> list[Option]:
    """Returns the parameters of a function or the fields of a dataclass, with limits and what the docstring says."""
    hints, meanings = get_type_hints(function), arguments_of(function)
    return [
        Option(
            name, hints.get(name, Any), p.default, p.default is p.empty, meanings.get(name, ""), limits.get(name)
        )
        for name, p in inspect.signature(function).parameters.items()
    ]  # fmt: skip


SECTION = re.compile(r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", re.DOTALL | re.MULTILINE)
ARGUMENT = re.compile(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", re.DOTALL | re.MULTILINE)


def arguments_of(function: Callable[..., Any]) -> dict[str, str]:
    """Returns what the docstring says of each argument, in its section `Args` or `Attributes`."""
    section = SECTION.search(inspect.getdoc(function) or "")
    found = ARGUMENT.findall(section[1] if section else "")
    return {name: " ".join(text.split()) for name, text in found}


class Registry(Generic[F]):
    """The named functions of one kind; `package` is imported whole on first use, so that a method is one file."""

    def __init__(self, kind: str, package: str | None = None, *, plugins: str | None = None, **facts: Any) -> None:
        """Makes an empty registry of `kind` (a word for messages).

        Args:
            kind: What is registered, as messages call it.
            package: The package whose modules register Plait's own.
            plugins: The entry-point group through which other packages add theirs, such as `plait.rules`.
            facts: What holds of all entries that do not say otherwise.
        """
        self.kind = kind
        self.plugins = plugins
        self._facts = facts
        self._package = package
        self._loaded = False
        self._entries: dict[str, Entry[F]] = {}

    def register(self, name: str, **facts: Any) -> Callable[[F], F]:
        """Returns a decorator that registers a function under `name` with facts such as `paper=`."""

        def decorate(function: F) -> F:
            known = canonical(name)
            if known in self._entries and self._entries[known].function is not function:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[known] = describe(known, function, {**self._facts, **facts}, self.kind)
            return function

        return decorate

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        if self._package is not None:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
                importlib.import_module(module.name)
        if self.plugins is not None:
            for plugin in sorted(entry_points(group=self.plugins), key=lambda p: p.name):
                self._load_plugin(plugin)

    def _load_plugin(self, plugin: EntryPoint) -> None:
        """Imports what another package registers; where that fails, warns and goes on without it."""
        before = dict(self._entries)
        try:
            plugin.load()
        except Exception as problem:
            self._entries = before
            reason = " ".join(str(problem).split())
            origin = f" of package {plugin.dist.name}" if plugin.dist is not None else ""
            logger.warning(
                "plug-in %s (%s)%s is not loaded: %s: %s; update or uninstall it",
                plugin.name, plugin.value, origin, type(problem).__name__, reason,
            )  # fmt: skip

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
