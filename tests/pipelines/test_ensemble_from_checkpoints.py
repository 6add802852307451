"""Ensembles of fine-tuned checkpoints: which ones fit together, what they keep, and what is judged untrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import plait
from plait.ensembles.plan import plan
from plait.ensembles.saved import SavedEnsemble
from plait.errors import MergeError, RecipeError
from plait.recipe import EnsembleRecipe
from tests.ensembles import command, prepare, rows
from tests.models import save, tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def made(place: Path, tmp_path_factory: pytest.TempPathFactory) -> SavedEnsemble:
    sources, out = [place / "seed1", place / "seed2"], tmp_path_factory.mktemp("made") / "ens"
    return plait.ensemble(sources=sources, out=out, epochs=0, shared_layers=1)


def test_one_model_may_be_given_alone(place: Path, tmp_path: Path) -> None:
    for name, given in (("text", str(place / "seed1")), ("path", place / "seed1")):
        saved = plait.ensemble(sources=given, out=tmp_path / name, epochs=0)
        assert saved.report["recipe"]["sources"] == [str(place / "seed1")]


def test_folders_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, width in (("run1", 24), ("run2", 32)):
        save(tiny("bert", "sequence", intermediate_size=width), tmp_path / run / "final")
    first, second = tmp_path / "run1" / "final", tmp_path / "run2" / "final"
    assert command("ensemble", "--from", first, second, "--epochs", 0, "-o", tmp_path / "e", "--dry-run") == 2
    assert f"{first}: 24, {second}: 32" in capsys.readouterr().err
    folder = tmp_path / "run3" / "final"
    model = tiny("bert", "sequence")
    model.resize_token_embeddings(model.config.vocab_size + 3)
    save(model, folder)
    save(tiny("bert", "sequence", seed=1), second)
    assert (
        command("ensemble", "--from", folder, second, "--epochs", 0, "-o", tmp_path / "e", "--dry-run") == 2
    )
    error = capsys.readouterr().err
    assert f"({folder}: [" in error
    assert f"{second}: [" in error


@pytest.mark.parametrize(
    ("family", "setting", "values"),
    [
        ("modernbert", "classifier_pooling", ("cls", "mean")),
        ("modernbert", "classifier_activation", ("gelu", "relu")),
        ("deberta-v2", "pooler_hidden_act", ("gelu", "relu")),
    ],
)
def test_heads_that_compute_something_else(
    tmp_path: Path, family: str, setting: str, values: tuple[str, str]
) -> None:
    for name, value in zip("ab", values, strict=True):
        save(tiny(family, "sequence", **{setting: value}), tmp_path / name)
    with pytest.raises(MergeError, match=f"{setting} differs"):
        plait.ensemble(sources=[tmp_path / "a", tmp_path / "b"], out=tmp_path / "e", epochs=0)


@pytest.mark.parametrize(
    ("family", "averaged"),
    [("bert", None), ("roberta", "classifier.dense"), ("distilbert", "pre_classifier")],
)
def test_projections_that_are_averaged_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str, averaged: str | None
) -> None:
    for seed in (1, 2):
        save(tiny(family, "sequence", seed=seed), tmp_path / str(seed))
    told: dict[str, Any] = {"from": [str(tmp_path / "1"), str(tmp_path / "2")], "output": "e", "epochs": 0}
    plan(EnsembleRecipe.model_validate({**told, "shared_layers": 1}))
    assert "all layers are shared" not in caplog.text
    plan(EnsembleRecipe.model_validate(told))
    assert ("all layers are shared" in caplog.text) == (averaged is not None)
    assert (
        averaged is None or f"{averaged}, below the last layer of the heads, is averaged too" in caplog.text
    )


def test_what_the_heads_of_models_that_exist_are_for(place: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"out": tmp_path / "e", "epochs": 0, "problem_type": "multi_label_classification"}
    with pytest.raises(
        RecipeError, match=r"problem_type is multi_label_classification; the heads of .*seed1 are for"
    ):
        plait.ensemble(sources=[place / "seed1"], **asked)
    for head in ("sequence", "regression"):
        model = tiny("bert", head)
        model.config.problem_type = None
        save(model, tmp_path / head)
    with pytest.raises(RecipeError, match="are for regression: leave it out"):
        plait.ensemble(sources=[tmp_path / "regression"], **asked)
    saved = plait.ensemble(sources=[tmp_path / "sequence"], **asked)
    assert saved.config.problem_type == saved.problem == "multi_label_classification"
    assert set(saved.predict(["the film"])[0]) == {"labels", "scores"}


def test_models_that_exist_get_the_dropout_that_is_asked_for(place: Path, tmp_path: Path) -> None:
    sources = [place / "seed1", place / "seed2"]
    saved = plait.ensemble(sources=sources, out=tmp_path / "e", epochs=0, classifier_dropout=0.4)
    assert saved.config.classifier_dropout == saved.report["recipe"]["classifier_dropout"] == 0.4
    assert [part.p for name, part in saved.model.named_modules() if name == "encoder.dropout"] == [0.4]


def test_models_without_dropout_are_put_together(place: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        model = tiny("bert", "sequence", seed=seed, labels=2)
        model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
        save(model, tmp_path / f"seed{seed}")
    asked: dict[str, Any] = {"sources": [tmp_path / "seed1", tmp_path / "seed2"], "out": tmp_path / "e"}
    with pytest.raises(RecipeError, match="this encoder drops nothing"):
        plait.ensemble(**asked, data=place / "train.jsonl", epochs=1)
    assert plait.ensemble(**asked, epochs=0).members == 2


def test_where_nothing_is_trained_nothing_is_cut(made: SavedEnsemble, place: Path, tmp_path: Path) -> None:
    assert "max_length" not in made.report["recipe"]
    assert made.tokenizer.model_max_length == AutoTokenizer.from_pretrained(place / "seed1").model_max_length
    again = plait.run({**made.report["recipe"], "output": str(tmp_path / "again")})
    assert "max_length" not in again.report["recipe"]


def test_nothing_trained_costs_nothing(made: SavedEnsemble) -> None:
    costs = made.report["forward_equivalents"]
    assert costs["training"] == costs["training_step"] == 0 < costs["prediction"]


def test_what_is_not_trained_is_judged_on_all_data(place: Path, tmp_path: Path) -> None:
    sources, data = [place / "seed1", place / "seed2"], rows(20)
    saved = plait.ensemble(sources=sources, data=data, out=tmp_path / "a", epochs=0, shared_layers=1)
    assert saved.report["data"]["examples"] == 0
    assert saved.report["data"]["validation"] == 20
    expected = plait.evaluate(saved.folder, data).tasks["model"].metrics["nll"]
    assert saved.report["validation"]["metrics"]["nll"] == pytest.approx(expected, abs=1e-6)
    assert "put together without training" in (saved.folder / "README.md").read_text(encoding="utf-8")
    assert json.loads((saved.folder / "plait.json").read_text(encoding="utf-8"))["epochs"] == []
