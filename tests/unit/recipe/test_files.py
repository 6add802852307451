"""The recipes that come with Plait are recipes, and say how they are run."""

from __future__ import annotations

from pathlib import Path

import pytest

from plait.recipe import read_recipe

FILES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_one(file: Path) -> None:
    recipe = read_recipe(file)
    assert recipe.output
    assert f"plait run recipes/{file.name}" in file.read_text()


def test_every_kind_has_one() -> None:
    from plait.recipe import COMBINES

    assert {read_recipe(file).combine for file in FILES} == set(COMBINES)
