"""Export of an ensemble: whole, one member for all, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.ensembles.plan import plan
from plait.ensembles.saved import SavedEnsemble
from plait.errors import RecipeError
from plait.recipe import EnsembleRecipe
from tests.ensembles import QUICK, command, prepare, weights
from tests.models import save, tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def made(place: Path, tmp_path_factory: pytest.TempPathFactory) -> SavedEnsemble:
    sources, out = [place / "seed1", place / "seed2"], tmp_path_factory.mktemp("made") / "ens"
    return plait.ensemble(sources=sources, out=out, epochs=0, shared_layers=1)


def test_one_member_stands_for_all(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = {**QUICK, "data": place / "train.jsonl"}
    for name, options in (
        ("tanh", {"head": "tanh"}),
        ("private", {"shared_layers": 1}),
        ("apart", {"method": "separate"}),
    ):
        caplog.clear()
        saved = plait.ensemble(place / "base", out=tmp_path / name, **told, **options)
        plait.export(saved, tmp_path / f"{name}-plain")
        assert "member 0 of 2 is exported alone" in caplog.text
        assert "on the validation data, all together" in caplog.text
        plait.export(saved, tmp_path / f"{name}-0", member=0)
        alone, first = weights(tmp_path / f"{name}-plain"), weights(tmp_path / f"{name}-0")
        assert alone.keys() == first.keys()
        assert all(torch.equal(alone[key], first[key]) for key in alone)


def test_heads_that_cannot_leave(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tiny("distilbert", "body"), tmp_path / "base")
    told: dict[str, Any] = {"data": str(place / "train.jsonl"), "output": "e", "head": "tanh"}
    plan(EnsembleRecipe.model_validate({**told, "base": str(place / "base")}))
    assert "cannot be exported" not in caplog.text
    plan(EnsembleRecipe.model_validate({**told, "base": str(tmp_path / "base")}))
    assert "cannot be exported, neither whole nor one member: classifiers of type distilbert" in caplog.text


def test_passes_with_dropout_cannot_be_exported(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: dict[str, Any] = {**QUICK, "data": place / "train.jsonl", "method": "mc-dropout", "members": 3}
    saved = plait.ensemble(place / "base", out=tmp_path / "ens", **told)
    with pytest.raises(RecipeError, match=r"one model whose members are passes with dropout: leave it out"):
        plait.export(saved, tmp_path / "two", member=2)
    caplog.clear()
    plait.export(saved, tmp_path / "plain")
    assert "the one model is exported" in caplog.text
    assert "its 3 passes" in caplog.text


def test_an_ensemble_has_no_tasks_to_choose(made: SavedEnsemble, tmp_path: Path) -> None:
    assert command("export", made.folder, "-o", tmp_path / "out", "--member", 0, "--task", "nonsense") == 2
    with pytest.raises(
        RecipeError, match=r"--task nonsense: .*ens is an ensemble for one task: leave it out"
    ):
        plait.export(made, tmp_path / "out", task="nonsense", member=0)
    assert not (tmp_path / "out").exists()
