"""Situations that are compared: different labels, the same labels, another architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plait.comparison.material import InMemory, gather
from plait.comparison.situation import Situation, situation_of
from plait.recipe import CompareRecipe, parse_as
from tests.comparing import rows, source, world

TASKS = {"mood": ("bad", "good", "mixed"), "topic": ("art", "food")}
SAME = {"films": ("no", "yes"), "books": ("yes", "no"), "songs": ("no", "yes")}


@pytest.fixture(scope="session")
def different(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.mktemp("different"), TASKS)


@pytest.fixture(scope="session")
def same(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.mktemp("same"), SAME)


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = world(tmp_path_factory.mktemp("foreign"), {"mood": TASKS["mood"]})
    model = source(folder, "topic", TASKS["topic"], seed=2, family="roberta")
    rows(model, folder / "topic.train.jsonl", 48, seed=2)
    rows(model, folder / "topic.test.jsonl", 48, seed=102)
    return folder


def recipe_in(folder: Path, names: Any, *, data: bool = True, test: bool = True, **more: Any) -> CompareRecipe:
    sources = {
        name: {"model": str(folder / name), **({"data": str(folder / f"{name}.train.jsonl")} if data else {})}
        for name in names
    }
    tests = {name: str(folder / f"{name}.test.jsonl") for name in names} if test else {}
    content = {"sources": sources, "test": tests, "output": str(folder / "never-written"), **more}
    return parse_as(CompareRecipe, content, "compare")


def situation_in(folder: Path, names: Any, given: InMemory | None = None, **more: Any) -> Situation:
    recipe = recipe_in(folder, names, **more)
    return situation_of(recipe, gather(recipe, given or InMemory({}, {})))
