"""Recipes of every kind: checked, then run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.api import amalgamating, ensembling, merging, planning
from plait.recipe import AmalgamateRecipe, EnsembleRecipe, MergeRecipe, Recipe, parse_recipe, read_recipe

Given = str | Path | Mapping[str, Any] | Recipe


def as_recipe(recipe: Given) -> Recipe:
    """Returns a recipe from a YAML file, a mapping or a recipe."""
    if isinstance(recipe, MergeRecipe | AmalgamateRecipe | EnsembleRecipe):
        return recipe
    return read_recipe(recipe) if isinstance(recipe, str | Path) else parse_recipe(recipe)


def check(recipe: Given, *, overwrite: bool = True) -> dict[str, Any]:
    """Returns what a recipe would do, after every check that needs no weights.

    Args:
        recipe: a YAML file, a mapping or a parsed recipe.
        overwrite: whether an output that exists is no problem.

    Raises:
        PlaitError: anything that would stop the run before its first computation.
    """
    found = as_recipe(recipe)
    if isinstance(found, AmalgamateRecipe):
        amalgamating.check_output(found, overwrite=overwrite)
        return amalgamating.plan(found).describe()
    if isinstance(found, EnsembleRecipe):
        ensembling.check_output(found, overwrite=overwrite)
        return ensembling.plan(found).describe()
    if not overwrite:
        planning.check_output(found, overwrite=False)
    return planning.plan(found).describe()


def run(recipe: Given, *, overwrite: bool = False, resume: bool = False) -> Any:
    """Returns the result of a recipe (a YAML file, a mapping or a parsed one), written to its `output`.

    A merge gives a `Merged` checkpoint, an amalgamation a `Student`, an ensemble a `SavedEnsemble`.

    Args:
        recipe: a YAML file, a mapping or a parsed recipe.
        overwrite: whether an existing output is replaced, once the new one is complete.
        resume: go on with the training that was stopped, where there is any.

    Raises:
        PlaitError: anything a user can mend; nothing has been written then.
    """
    found = as_recipe(recipe)
    if isinstance(found, AmalgamateRecipe):
        return amalgamating.run_amalgamation(found, overwrite=overwrite, resume=resume)
    if isinstance(found, EnsembleRecipe):
        return ensembling.run_ensemble(found, overwrite=overwrite, resume=resume)
    return merging.run_merge(found, overwrite=overwrite, resume=resume)
