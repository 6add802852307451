"""What a recipe names as method and perturbation, and refuses: apart, as the other choices need models and data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plait.ensembles.method import Build, Choice, refuse_unused
from plait.ensembles.perturbation import PERTURBATIONS
from plait.ensembles.training import Noise
from plait.errors import RecipeError
from plait.recipe import EnsembleRecipe


def choice_of(recipe: EnsembleRecipe, *, texts: bool = False) -> Choice:
    """Returns the method, after checking every name and option; what it would ignore is refused.

    Args:
        recipe: what to do.
        texts: whether texts without labels are given in memory.
    """
    named = recipe.method
    shares = {"shared_layers": None if recipe.shared_layers == "all" else recipe.shared_layers}
    given = {"consistency": recipe.consistency, "alpha": recipe.alpha, "members": recipe.members}
    refuse_unused(named.name, given)
    regulariser = recipe.consistency
    choice = Choice(
        named.name,
        named.options,
        "ensemble" if regulariser is None else regulariser.name,
        {} if regulariser is None else regulariser.options,
        weight_of(recipe),
    )
    if regulariser is not None and choice.consistency == "none" and recipe.alpha:
        raise RecipeError(
            f"alpha is {recipe.alpha:g} and consistency none, which nothing weighs: leave one of them out"
        )
    refuse_stray(recipe, choice, shares, texts=texts)
    return choice


def refuse_stray(
    recipe: EnsembleRecipe, choice: Choice, shares: Mapping[str, Any], *, texts: bool
) -> None:
    """Raises `RecipeError` where models that exist, layers, texts or a store are given to what ignores them."""
    if recipe.base is not None and recipe.sources is not None and not choice.taught:
        raise RecipeError(
            f"both of base and from is given; expected one of them: method {choice.name} has no student to start from "
            "a base"
        )
    given: dict[str, Any] = {}
    if choice.build is not Build.SHARED or choice.lone:
        takes = choice.taught or choice.build is Build.SOUP
        given = {"from": None if takes else recipe.sources, "replicate_at": recipe.replicate_at, **shares}
    stray = [name for name, value in given.items() if value is not None]
    others = "camero, shared or one"
    if not choice.taught:
        kept = recipe.keep_members and choice.build is not Build.SOUP
        told = {
            "text": recipe.text or texts or None, "store": recipe.store, "student_epochs": recipe.student_epochs,
            "keep_members": kept or None,
        }  # fmt: skip
        teaching = [name for name, value in told.items() if value is not None]
        stray, others = [*stray, *teaching], "distilled or hydra" if teaching else others
    if stray:
        raise RecipeError(
            f"method {choice.name} does not use {', '.join(stray)}; leave "
            f"{'it' if len(stray) == 1 else 'them'} out, or choose method {others}"
        )
    if recipe.sources is not None and (recipe.keep_members or (choice.taught and recipe.student_epochs is not None)):
        raise RecipeError(
            "keep_members and student_epochs are for members that are trained; found models that exist (from): leave "
            "them out, epochs is how long the student learns"
        )
    if recipe.sources is not None and recipe.base is not None and choice.from_soup:
        raise RecipeError(
            f"base is {recipe.base}, and start soup begins with the mean of the models after from: leave one of them "
            "out"
        )


def weight_of(recipe: EnsembleRecipe) -> float:
    """Returns α: as given, 1, or 0 where there is nothing to weigh."""
    if recipe.alpha is not None:
        return float(recipe.alpha)
    return 0.0 if recipe.consistency is not None and recipe.consistency.name == "none" else 1.0


def noise_of(recipe: EnsembleRecipe) -> Noise:
    """Returns the perturbation: dropout by default; `strength` is an option of those that have one.

    Raises:
        RecipeError: an unknown perturbation or option, one out of its limits, or a strength that is given twice.
    """
    chosen = recipe.perturbation
    lone = Choice(recipe.method.name, recipe.method.options)
    plain = lone.build is not Build.SHARED or (lone.lone and not lone.passes)
    name = ("none" if plain else "dropout") if chosen is None else chosen.name
    options: dict[str, Any] = {} if chosen is None else chosen.options
    if recipe.strength is not None:
        if name == "none":
            said = f"method {recipe.method.name} trains" if chosen is None else "perturbation none goes"
            raise RecipeError(
                f"strength is {recipe.strength:g}, and {said} without a perturbation: leave it out"
            )
        if "strength" in options:
            raise RecipeError("strength is given twice, by itself and as an option of the perturbation")
        word = "rate" if "rate" in PERTURBATIONS[name].options else "strength"
        options = {**options, word: recipe.strength}
    return Noise(name, options, recipe.replicate_at)
