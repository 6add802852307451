"""Methods and the schema of recipes; apart because what was asked before is answered without torch."""

from __future__ import annotations

from typing import Any

from plait.api.answer_cache import answer
from plait.errors import RecipeError, did_you_mean
from plait.registry import canonical


def methods(name: str | None = None) -> dict[str, dict[str, Any]]:
    """Returns every method by name (or those of one name): what each does, when to use it, what it needs and takes.

    Merging methods stand under their name, all others behind what they are: `gate muka`, `importance diagonal`.

    Raises:
        RecipeError: no such name (did you mean).
    """
    every = answer("methods", _methods)
    if name is None:
        return every
    wanted = canonical(name)
    names = {key: key.removeprefix(f"{about['kind']} ") for key, about in every.items()}
    found = {key: about for key, about in every.items() if wanted in {names[key], canonical(key)}}
    if not found:
        raise RecipeError(f"unknown method {name!r}{did_you_mean(name, names.values())}")
    return found


def schema() -> dict[str, Any]:
    """Returns one JSON schema (2020-12) of all recipes, told apart by `combine`.

    It names every method that is installed, those of plug-ins too, with the type, limits, default and meaning of each
    option. `plait schema > plait.schema.json` writes it for editors.
    """
    return answer("schema", _schema)


def _methods() -> dict[str, dict[str, Any]]:
    from plait.api.registries import every_method

    return every_method()


def _schema() -> dict[str, Any]:
    from plait.api.recipe_schema import recipe_schema

    return recipe_schema()
