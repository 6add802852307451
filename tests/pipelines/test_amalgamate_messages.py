"""What an amalgamation warns of: teachers, gates, passes, and too few texts or steps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.amalgamation.plan import plan
from plait.errors import RecipeError
from plait.recipe.arguments import amalgamation_recipe
from tests.models import texts
from tests.two_teachers import QUICK, Paths


def test_one_model_under_two_names(
    place: Path, teachers: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {**teachers, "again": teachers["news"]}
    plait.amalgamate(given, texts=texts(30), student=place / "base", out=tmp_path / "student", **QUICK)
    assert "teachers news, again have the same weights: leave all but one of them out" in caplog.text


def test_a_gate_that_sees_no_difference_is_told(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    twice = {"a": str(place / "news"), "b": str(place / "news")}
    plait.amalgamate(twice, texts=texts(20), student=place / "base", out=tmp_path / "s", **QUICK)
    assert "finds no difference between the best teachers on 20 of 20 texts" in caplog.text


def test_what_speaks_of_passes_that_nobody_makes_is_said(
    place: Path, teachers: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: dict[str, Any] = {"texts": texts(20), "student": place / "base", **QUICK}
    plait.amalgamate(teachers, out=tmp_path / "s", last_layers=1, **told)
    assert "give --passes" in caplog.text
    with pytest.raises(RecipeError, match="needs Monte Carlo passes"):
        plait.amalgamate(teachers, out=tmp_path / "t", gate="muka", passes=0, **told)


@pytest.mark.parametrize("count", [20, 200])
def test_too_few_texts_for_a_covariance_are_said(
    place: Path, teachers: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    caplog.set_level(logging.WARNING)
    recipe = amalgamation_recipe(
        teachers, out=tmp_path / "s", texts=None, student=place / "base", validation=None, options={}
    )
    plan(recipe, texts(count))
    assert ("estimates a covariance from 20 texts" in caplog.text) is (count == 20)


@pytest.mark.parametrize(("epochs", "size", "said"), [(1, 16, True), (3, 1, False)])
def test_too_few_steps_are_said(
    place: Path,
    teachers: Paths,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    epochs: int,
    size: int,
    said: bool,
) -> None:
    told: dict[str, Any] = {
        "texts": texts(80),
        "student": place / "base",
        "objective": "vkd",
        "held_back": 0.1,
    }
    plait.amalgamate(teachers, out=tmp_path / "s", epochs=epochs, batch_size=size, max_length=8, **told)
    assert ("the student learns in 5 steps only" in caplog.text) is said
    assert ("steps only" in caplog.text) is said
