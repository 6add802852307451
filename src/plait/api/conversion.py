"""Recipes of other programs; apart from the jobs because it needs no torch."""

from __future__ import annotations

from pathlib import Path

from plait.recipe import MergeRecipe, parse_as
from plait.recipe.mergekit import read_mergekit


def convert(recipe: str | Path, *, output: str | Path | None = None) -> MergeRecipe:
    """Returns what a recipe of mergekit says in the words of Plait; `plait.recipe.to_yaml` writes it down.

    Args:
        recipe: a YAML file of mergekit.
        output: the folder that it is to write; by default `merged-` and the file's name.

    Raises:
        RecipeProblems: everything in it that is not understood, or that no rule here does.
    """
    found = read_mergekit(recipe, None if output is None else str(output))
    return parse_as(MergeRecipe, found, str(recipe))
