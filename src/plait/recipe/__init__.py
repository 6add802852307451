"""Recipes: frozen descriptions of one job, validated before anything is loaded; YAML in and out."""

from plait.recipe.amalgamate import AmalgamateRecipe, TeacherSpec
from plait.recipe.compare import ComparedSource, CompareRecipe
from plait.recipe.ensemble import EnsembleRecipe
from plait.recipe.fields import DataSpec, NamedOptions, number
from plait.recipe.merge import AUTO, ESTIMATION, LayerWeight, MergeRecipe, MethodSpec, SourceSpec
from plait.recipe.parsing import COMBINES, Recipe, parse_as, parse_recipe, read_recipe, to_yaml

__all__ = [
    "AUTO",
    "COMBINES",
    "ESTIMATION",
    "AmalgamateRecipe",
    "CompareRecipe",
    "ComparedSource",
    "DataSpec",
    "EnsembleRecipe",
    "LayerWeight",
    "MergeRecipe",
    "MethodSpec",
    "NamedOptions",
    "Recipe",
    "SourceSpec",
    "TeacherSpec",
    "number",
    "parse_as",
    "parse_recipe",
    "read_recipe",
    "to_yaml",
]
