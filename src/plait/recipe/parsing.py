"""Recipes from mappings and YAML, and back; every problem is said at once, in our own words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import AliasChoices, ValidationError

from plait.boundary import parse_yaml, read_text
from plait.errors import RecipeError, did_you_mean, listed
from plait.recipe.amalgamate import AmalgamateRecipe, TeacherSpec
from plait.recipe.compare import ComparedSource, CompareRecipe
from plait.recipe.ensemble import EnsembleRecipe
from plait.recipe.fields import DataSpec, Strict
from plait.recipe.merge import MergeRecipe, SourceSpec
from plait.recipe.mergekit import is_mergekit, translated

Recipe = MergeRecipe | AmalgamateRecipe | EnsembleRecipe | CompareRecipe
R = TypeVar("R", bound=Strict)
LONGEST = 2**20
"""Bytes of a recipe."""
COMBINES: dict[str, type[Recipe]] = {
    "merge": MergeRecipe,
    "amalgamate": AmalgamateRecipe,
    "ensemble": EnsembleRecipe,
    "compare": CompareRecipe,
}
ENTRIES: dict[type[Strict], type[Strict]] = {MergeRecipe: SourceSpec, CompareRecipe: ComparedSource}
"""What an entry of `sources` says, where it is not a teacher."""


def _problem(model: type[Strict], error: Mapping[str, Any]) -> str:  # noqa: PLR0911 - one return a kind of problem
    """Returns one problem in our own words: where, what was found, what was expected, what may have been meant."""
    where = ".".join(str(part) for part in error["loc"] if part != "[key]")
    found, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return (
                f"unknown key {where!r}{did_you_mean(str(error['loc'][-1]), _keys_at(model, error['loc']))}"
            )
        case "missing":
            return f"{where} is missing"
        case "literal_error":
            options = [word.strip("' ") for word in context["expected"].replace(" or ", ", ").split(",")]
            return f"{where} is {found!r}{did_you_mean(str(found), options)}"
        case "value_error" if not where:  # of the recipe as a whole
            return str(context["error"])
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


def _keys_at(model: type[Strict], location: tuple[Any, ...]) -> Iterable[str]:
    """Returns the keys that a recipe of this kind knows where an unknown one was found."""
    match location:
        case (_,):
            return model.model_fields
        case ("sources" | "teachers", _, _):
            return ENTRIES.get(model, TeacherSpec).model_fields
    return DataSpec.model_fields


def parse_recipe(content: Any, where: str = "recipe") -> Recipe:
    """Returns the recipe described by a mapping.

    Raises:
        RecipeError: not a mapping, an unknown `combine`, an unknown key (did you mean), a wrong value; all at once.
    """
    if not isinstance(content, Mapping):
        raise RecipeError(
            f"{where}: expected a mapping with combine, sources and output, found {type(content).__name__}"
        )
    if is_mergekit(content):
        content = translated(content, where)
    kind = content.get("combine", "merge")
    if not isinstance(kind, str) or kind not in COMBINES:
        raise RecipeError(f"{where}: unknown combine {kind!r}{did_you_mean(str(kind), COMBINES)}")
    return parse_as(COMBINES[kind], content, where)


def _other_kind(model: type[Strict], content: Mapping[str, Any]) -> str:
    """Returns a hint where a recipe that does not say what it combines has keys of another kind."""
    if "combine" in content:
        return ""
    unknown = set(content) - _names(model)
    kinds = [name for name, kind in COMBINES.items() if unknown and unknown <= _names(kind)]
    return (
        f" (combine is missing, so it is read as merge: these are keys of {' and '.join(kinds)})"
        if kinds
        else ""
    )


def _names(kind: type[Strict]) -> set[str]:
    aliases = [field.validation_alias for field in kind.model_fields.values()]
    others = {str(choice) for found in aliases if isinstance(found, AliasChoices) for choice in found.choices}
    return {*kind.model_fields, *others}


def parse_as(model: type[R], content: Mapping[str, Any], where: str) -> R:
    """Returns the recipe of one kind described by a mapping.

    Raises:
        RecipeError: an unknown key (did you mean), a wrong value; all at once.
    """
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        problems = listed(_problem(model, dict(e)) for e in error.errors())
        raise RecipeError(f"{where}: {problems}{_other_kind(model, content)}") from None


def read_recipe(path: str | Path) -> Recipe:
    """Returns the recipe in a YAML file, or what a recipe of mergekit says in our words.

    Paths in it are relative to the current folder, like arguments.

    Raises:
        RecipeError: no such file, not YAML, or not a recipe.
    """
    file = Path(path)
    if not file.is_file():
        raise RecipeError(f"no recipe at {file} (expected a YAML file)")
    text = read_text(file, error=RecipeError, largest=LONGEST)
    return parse_recipe(parse_yaml(text, file, error=RecipeError), str(file))


def to_yaml(recipe: Recipe) -> str:
    """Returns the recipe as YAML, without what was left at None."""
    return yaml.safe_dump(
        recipe.model_dump(exclude_none=True, mode="json"), sort_keys=False, allow_unicode=True
    )
