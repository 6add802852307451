"""Recipes: frozen descriptions of one job, validated before anything is loaded; YAML in and out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from plait.errors import RecipeError, did_you_mean, listed
from plait.registry import canonical

Name = Annotated[str, BeforeValidator(lambda value: canonical(value) if isinstance(value, str) else value)]
Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[\w][\w.+@-]*", name):
        raise ValueError("expected a name of letters, digits, and . _ - + @: it names a folder")
    return name


PlainName = Annotated[str, AfterValidator(_plain_name)]


class Strict(BaseModel):
    """Frozen, and closed: an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSpec(Strict):
    """Where texts and labels are, and which columns hold them (found by name when not given)."""

    path: Text
    split: str | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None

    def columns(self) -> dict[str, str]:
        """Returns the given column names and split, ready as keyword arguments of `plait.data.read_examples`."""
        return self.model_dump(exclude_none=True, exclude={"path"})


Data = Annotated[DataSpec, BeforeValidator(lambda v: {"path": v} if isinstance(v, str | Path) else v)]


class SourceSpec(Strict):
    """One fine-tuned checkpoint, with the data that tells which of its weights count."""

    model: Text
    data: Data | None = None
    statistics: Text | None = None
    task: PlainName | None = None
    weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    revision: str | None = None


Source = Annotated[SourceSpec, BeforeValidator(lambda v: {"model": v} if isinstance(v, str | Path) else v)]

ESTIMATION = (
    "importance",
    "mapping",
    "labels",
    "normalize",
    "per",
    "examples",
    "batch_size",
    "max_length",
    "seed",
)
"""Keys of `method` that say how statistics are gathered; the others are options of the rule."""


def number(value: Any) -> Any:
    """Returns a number for a text that is one: YAML takes 1e-6 for a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class MethodSpec(BaseModel):
    """A merging rule, the importance it uses, and the rule's own options (any key the rule declares)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Name
    importance: Name = "diagonal"
    mapping: Literal["paper", "structural"] = "paper"
    labels: Literal["given", "sampled", "exact"] = "given"
    normalize: Name = "tensor"
    per: Literal["example", "batch"] = "example"
    examples: int = Field(default=256, ge=1)
    batch_size: int = Field(default=16, ge=1)
    max_length: int | None = Field(default=None, ge=4)
    seed: int = Field(default=0, ge=0)

    @property
    def options(self) -> dict[str, Any]:
        """Returns the rule's own options."""
        return {name: number(value) for name, value in (self.model_extra or {}).items()}


Method = Annotated[MethodSpec, BeforeValidator(lambda v: {"name": v} if isinstance(v, str) else v)]


class MergeRecipe(Strict):
    """A merge: sources become one encoder with a head per task."""

    combine: Literal["merge"] = "merge"
    sources: dict[PlainName, Source] = Field(min_length=1)
    base: Text | None = None
    method: Method | None = None
    output: Text
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    max_shard_size: str = "5GB"
    trust_remote_code: bool = False
    evaluate: dict[str, Data] = Field(default_factory=dict)

    def resolved_method(self, data: Mapping[str, Any] | None = None) -> MethodSpec:
        """Returns the method, choosing Plait's default when the recipe names none: see docs/merging.md.

        With data or statistics for every source that is `regmean`; without, it is `average`.
        """
        if self.method is not None:
            return self.method
        known = set(data or {})
        informed = all(s.data or s.statistics or name in known for name, s in self.sources.items())
        return MethodSpec(name="regmean" if informed else "average")

    def tasks(self) -> dict[str, str]:
        """Returns source name -> task name; a source without a `task` is its own task."""
        return {name: source.task or name for name, source in self.sources.items()}

    def weights(self) -> list[float] | None:
        """Returns λ per source in order (1 where not given), or None when no source has one."""
        given = [source.weight for source in self.sources.values()]
        return None if all(w is None for w in given) else [1.0 if w is None else w for w in given]


COMBINES: dict[str, type[MergeRecipe]] = {"merge": MergeRecipe}


def _problem(error: Mapping[str, Any]) -> str:  # noqa: PLR0911 - one return a kind of problem
    """Returns one problem in our own words: where, what was found, what was expected, what may have been meant."""
    where = ".".join(str(part) for part in error["loc"] if part != "[key]")
    found, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {where!r}{did_you_mean(str(error['loc'][-1]), _keys_at(error['loc']))}"
        case "missing":
            return f"{where} is missing"
        case "literal_error":
            options = [word.strip("' ") for word in context["expected"].replace(" or ", ", ").split(",")]
            return f"{where} is {found!r}{did_you_mean(str(found), options)}"
        case "value_error":
            return f"{where} is {found!r}: {context['error']}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{where} is {_short(found)} (expected a mapping)"
        case "string_type":
            return f"{where} is {_short(found)} (expected a text)"
    return f"{where} is {_short(found)}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _keys_at(location: tuple[Any, ...]) -> Iterable[str]:
    """Returns the keys that a recipe knows where an unknown one was found."""
    match location:
        case (_,):
            return MergeRecipe.model_fields
        case ("sources", _, _):
            return SourceSpec.model_fields
    return DataSpec.model_fields


def parse_recipe(content: Any, where: str = "recipe") -> MergeRecipe:
    """Returns the recipe described by a mapping.

    Raises:
        RecipeError: not a mapping, an unknown `combine`, an unknown key (did you mean), a wrong value; all at once.
    """
    if not isinstance(content, Mapping):
        raise RecipeError(
            f"{where}: expected a mapping with combine, sources and output, found {type(content).__name__}"
        )
    kind = content.get("combine", "merge")
    if kind not in COMBINES:
        raise RecipeError(f"{where}: unknown combine {kind!r}{did_you_mean(str(kind), COMBINES)}")
    try:
        return COMBINES[kind].model_validate(dict(content))
    except ValidationError as error:
        raise RecipeError(f"{where}: {listed(_problem(dict(e)) for e in error.errors())}") from None


class UniqueKeys(yaml.SafeLoader):
    """Reads YAML, and refuses a key that is given twice: the first of two sources must not vanish."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns a mapping; raises when a key repeats."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            line = node.start_mark.line + 1
            raise RecipeError(
                f"{', '.join(twice)} is given twice in the mapping at line {line} of the recipe"
            )
        return super().construct_mapping(node, deep)


def read_recipe(path: str | Path) -> MergeRecipe:
    """Returns the recipe in a YAML file; paths in it are relative to the current folder, like arguments.

    Raises:
        RecipeError: no such file, not YAML, or not a recipe.
    """
    file = Path(path)
    if not file.is_file():
        raise RecipeError(f"no recipe at {file} (expected a YAML file)")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    return parse_recipe(content, str(file))


def to_yaml(recipe: MergeRecipe) -> str:
    """Returns the recipe as YAML, without what was left at None."""
    return yaml.safe_dump(
        recipe.model_dump(exclude_none=True, mode="json"), sort_keys=False, allow_unicode=True
    )
