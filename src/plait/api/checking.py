"""What a recipe would do; apart because a recipe that is wrong in itself is refused without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.recipe import (
    AmalgamateRecipe,
    CompareRecipe,
    EnsembleRecipe,
    MergeRecipe,
    Recipe,
    parse_recipe,
    read_recipe,
)

Given = str | Path | Mapping[str, Any] | Recipe


def as_recipe(recipe: Given, output: str | Path | None = None) -> Recipe:
    """Returns a recipe from a YAML file (ours or mergekit's), a mapping or a recipe; `output` instead of its own."""
    found: Recipe
    if isinstance(recipe, MergeRecipe | AmalgamateRecipe | EnsembleRecipe | CompareRecipe):
        found = recipe
    else:
        found = read_recipe(recipe) if isinstance(recipe, str | Path) else parse_recipe(recipe)
    return found if output is None else found.model_copy(update={"output": str(output)})


def check(recipe: Given, *, overwrite: bool = True, output: str | Path | None = None) -> dict[str, Any]:
    """Returns what a recipe would do, after every check that needs no weights.

    Args:
        recipe: a YAML file (ours or mergekit's), a mapping or a parsed recipe.
        output: the folder to write instead of the recipe's.
        overwrite: whether an output that exists is no problem.

    Raises:
        PlaitError: anything that would stop the run before its first computation.
    """
    found = as_recipe(recipe, output)
    if isinstance(found, AmalgamateRecipe):
        from plait.amalgamation import plan as amalgamation

        amalgamation.check_output(found, overwrite=overwrite)
        return amalgamation.plan(found).describe()
    if isinstance(found, EnsembleRecipe):
        from plait.ensembles import plan as ensembles

        ensembles.check_output(found, overwrite=overwrite)
        return ensembles.plan(found, dry=True).describe()
    if isinstance(found, CompareRecipe):
        from plait.comparison.files import check_folder
        from plait.comparison.plan import planned

        check_folder(found, overwrite=overwrite)
        return planned(found).describe()
    return _check_merge(found, overwrite=overwrite)


def _check_merge(recipe: MergeRecipe, *, overwrite: bool) -> dict[str, Any]:
    from plait.merging import plan as merging
    from plait.merging.adapters import plan_adapters
    from plait.merging.cost import cost_of

    if not overwrite:
        merging.check_output(recipe, overwrite=False)
    if recipe.keep_adapter:
        return plan_adapters(recipe).describe()
    job = merging.plan(recipe, dry=True)
    return {**job.describe(), **cost_of(job)}
