"""What a walk through families, damaged files and the options of models that exist found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import plait
from plait.ensembles.plan import plan
from plait.ensembles.saved import SavedEnsemble
from plait.errors import DataError, MergeError, PlaitError, SourceError
from plait.recipe import EnsembleRecipe
from plait.training.state import check_state
from tests.ensembles import QUICK, command, prepare, rows, tagged, weights, write
from tests.models import save, tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture
def made(place: Path, tmp_path: Path) -> SavedEnsemble:
    return plait.ensemble(sources=[place / "seed1", place / "seed2"], out=tmp_path / "ens", epochs=0)


@pytest.mark.parametrize("name", ["heads.out.weight", "encoder.bert.encoder.layer.0.output.dense.bias"])
def test_weights_that_are_not_there(made: SavedEnsemble, place: Path, tmp_path: Path, name: str) -> None:
    kept = weights(made.folder)
    del kept[name]
    save_file(kept, made.folder / "model.safetensors", metadata={"format": "pt"})
    for ask in (plait.load, lambda folder: plait.evaluate(folder, place / "test.jsonl")):
        with pytest.raises(SourceError, match=f"the weights do not fit .*lack {name}"):
            ask(made.folder)
    assert command("export", made.folder, "-o", tmp_path / "plain") == 2
    assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize("content", ['{"recipe": 3}', '{"recipe": {"method": []}}'])
def test_a_record_of_something_else(
    made: SavedEnsemble, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (made.folder / "plait.json").write_text(content, encoding="utf-8")
    assert command("export", made.folder, "-o", made.folder.parent / "plain") == 2
    assert "plait.json is damaged" in capsys.readouterr().err


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


def test_words_are_no_texts_out_of_scope(made: SavedEnsemble, place: Path, tmp_path: Path) -> None:
    words = write(tmp_path / "words.jsonl", tagged(4))
    with pytest.raises(DataError, match="is data for token_classification; --out-of-scope expects texts"):
        plait.evaluate(made.folder, place / "test.jsonl", out_of_scope=words)


def test_the_record_of_a_stopped_run(tmp_path: Path) -> None:
    check_state(tmp_path, {"seed": 1})
    check_state(tmp_path, {"seed": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
    (tmp_path / "run.json").write_text("", encoding="utf-8")
    with pytest.raises(PlaitError, match=r"run\.json:? is damaged .*start again without resume"):
        check_state(tmp_path, {"seed": 1})


@pytest.mark.parametrize(
    "options", [{"consistency": "none"}, {"method": "one"}, {"method": "codistillation"}, {"alpha": 0.0}]
)
def test_a_resolved_recipe_runs_again(place: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    told = {"base": str(place / "base"), "data": str(place / "train.jsonl"), "output": str(tmp_path / "e")}
    first = plan(EnsembleRecipe.model_validate({**told, **QUICK, **options}))
    again = plan(EnsembleRecipe.model_validate(first.resolved().model_dump(mode="json", exclude_none=True)))
    assert again.resolved() == first.resolved()
    assert again.describe() == first.describe()


def test_what_is_not_trained_is_judged_on_all_data(place: Path, tmp_path: Path) -> None:
    sources, data = [place / "seed1", place / "seed2"], rows(20)
    saved = plait.ensemble(sources=sources, data=data, out=tmp_path / "a", epochs=0, shared_layers=1)
    assert saved.report["data"]["examples"] == 0
    assert saved.report["data"]["validation"] == 20
    expected = plait.evaluate(saved.folder, data).tasks["model"].metrics["nll"]
    assert saved.report["validation"]["metrics"]["nll"] == pytest.approx(expected, abs=1e-6)
    assert "put together without training" in (saved.folder / "README.md").read_text(encoding="utf-8")
    assert json.loads((saved.folder / "plait.json").read_text(encoding="utf-8"))["epochs"] == []
