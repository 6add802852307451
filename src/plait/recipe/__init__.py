"""Recipes: frozen descriptions of one job, validated before anything is loaded; YAML in and out."""

from plait.recipe.amalgamate import AmalgamateRecipe, GateSpec, ObjectiveSpec, TeacherSpec
from plait.recipe.ensemble import ChoiceSpec, EnsembleRecipe
from plait.recipe.fields import DataSpec, number
from plait.recipe.merge import AUTO, ESTIMATION, MergeRecipe, MethodSpec, SourceSpec
from plait.recipe.parsing import COMBINES, Recipe, parse_as, parse_recipe, read_recipe, to_yaml

__all__ = [
    "AUTO",
    "COMBINES",
    "ESTIMATION",
    "AmalgamateRecipe",
    "ChoiceSpec",
    "DataSpec",
    "EnsembleRecipe",
    "GateSpec",
    "MergeRecipe",
    "MethodSpec",
    "ObjectiveSpec",
    "Recipe",
    "SourceSpec",
    "TeacherSpec",
    "number",
    "parse_as",
    "parse_recipe",
    "read_recipe",
    "to_yaml",
]
