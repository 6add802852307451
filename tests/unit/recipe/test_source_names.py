"""Sources without names are called after their folders; several sources of one task are named at once."""

from __future__ import annotations

import pytest

from plait.cli.options import named_sources
from plait.errors import RecipeError
from plait.recipe.arguments import merge_recipe, shared_tasks
from plait.recipe.naming import named_places


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["ckpt/a", "ckpt/b"], ["a", "b"]),
        (["/abs/ckpt/a/", "./b"], ["a", "b"]),
        (["mood/checkpoint-500", "type/checkpoint-500"], ["mood", "type"]),
        (["run1/mood", "run2/mood"], ["run1-mood", "run2-mood"]),
        (["owner/bert-sst2", "owner/bert-trec"], ["bert-sst2", "bert-trec"]),
        (["ckpt/my model (2)", "ckpt/b"], ["my-model-2", "b"]),
        (["same", "same"], ["same", "same-2"]),
        (["checkpoint-500", "checkpoint-900"], ["checkpoint-500", "checkpoint-900"]),
        (["m/checkpoint-5", "m/checkpoint-9"], ["m", "m-2"]),
    ],
)
def test_names(places: list[str], names: list[str]) -> None:
    assert named_places(places) == dict(zip(names, places, strict=True))


def recipe(sources: object, **changes: object) -> object:
    told = {"method": None, "data": None, "statistics": None, "base": None, "weights": None, "tasks": None}
    return merge_recipe(sources, out="o", evaluate=None, options={}, **{**told, **changes})[0]  # type: ignore[arg-type]


def test_names_are_those_that_recipes_take() -> None:
    assert list(recipe(["ckpt/my model (2)", "../b"]).sources) == ["my-model-2", "b"]  # type: ignore[attr-defined]


def test_command_line() -> None:
    assert named_sources(["a=x", "b=y"], "sources") == {"a": "x", "b": "y"}
    assert named_sources(["ckpt/a", "ckpt/k=2/b"], "sources") == {"a": "ckpt/a", "b": "ckpt/k=2/b"}
    with pytest.raises(RecipeError, match="name all"):
        named_sources(["a=x", "ckpt/b"], "sources")


def test_several_sources_of_one_task() -> None:
    assert shared_tasks({"a,b, c": "mood", "d": "type"}) == {"a": "mood", "b": "mood", "c": "mood", "d": "type"}
    with pytest.raises(RecipeError, match="'a' is given twice"):
        shared_tasks({"a,b": "mood", "a": "type"})
    made = recipe({"a": "x", "b": "y", "c": "z"}, tasks={"a,b": "mood"})
    assert made.tasks() == {"a": "mood", "b": "mood", "c": "c"}  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="unknown source 'q'"):
        recipe({"a": "x"}, tasks={"a,q": "mood"})
