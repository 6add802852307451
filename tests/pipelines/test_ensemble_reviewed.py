"""What a review of the ensembles found: options that were ignored, plans that were wrong, objects not taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

import plait
from plait.amalgamation.student import Student
from plait.data import read_examples
from plait.ensembles import run as ensembling
from plait.ensembles import saved as ensembles
from plait.ensembles.saved import SavedEnsemble
from plait.errors import DataError, PlaitError, RecipeError, SourceError
from plait.recipe import EnsembleRecipe
from tests.ensembles import NAMES, QUICK, command, prepare, rows, weights
from tests.models import save, tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def made(place: Path, tmp_path_factory: pytest.TempPathFactory) -> SavedEnsemble:
    sources, out = [place / "seed1", place / "seed2"], tmp_path_factory.mktemp("made") / "ens"
    return plait.ensemble(sources=sources, out=out, epochs=0, shared_layers=1)


def test_what_made_something_gives_what_can_be_scored_and_exported(
    made: SavedEnsemble, place: Path, tmp_path: Path
) -> None:
    found = plait.evaluate(made, place / "test.jsonl")
    assert found == plait.evaluate(made.folder, place / "test.jsonl")
    assert plait.evaluate(Student(place / "seed1"), place / "test.jsonl") == plait.evaluate(
        place / "seed1", place / "test.jsonl"
    )
    assert plait.export(made, tmp_path / "one", member=1) == tmp_path / "one"
    assert (tmp_path / "one" / "config.json").is_file()


@pytest.mark.parametrize("form", [list, tuple, np.array, pd.Series])
def test_columns_in_memory_may_be_arrays(made: SavedEnsemble, place: Path, form: Any) -> None:
    table = rows(12, seed=5)
    given = {"text": table["text"], "label": form(table["label"])}
    expected = plait.evaluate(made, place / "test.jsonl").tasks["model"]
    assert plait.evaluate(made, given).tasks["model"] == expected
    for whole in (pd.DataFrame(given), datasets.Dataset.from_dict(table), read_examples(table), table):
        assert plait.evaluate(made, {"test": whole}).tasks["test"] == expected


def test_an_ensemble_has_no_tasks_to_choose(made: SavedEnsemble, tmp_path: Path) -> None:
    assert command("export", made.folder, "-o", tmp_path / "out", "--member", 0, "--task", "nonsense") == 2
    with pytest.raises(
        RecipeError, match=r"--task nonsense: .*ens is an ensemble for one task: leave it out"
    ):
        plait.export(made, tmp_path / "out", task="nonsense", member=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["camero", "mc-dropout"])
def test_weights_are_read_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    saved = plait.ensemble(
        place / "base", data=place / "train.jsonl", out=tmp_path / "e", method=method, **QUICK
    )
    calls, own = [], ensembles.open_ensemble
    monkeypatch.setattr(ensembles, "open_ensemble", lambda *a: calls.append(a) or own(*a))
    assert saved.predict(["the film"]) == saved.predict(["the film"])
    assert not saved.model.training
    assert len(calls) == 1


def test_models_that_exist_get_the_dropout_that_is_asked_for(place: Path, tmp_path: Path) -> None:
    sources = [place / "seed1", place / "seed2"]
    saved = plait.ensemble(sources=sources, out=tmp_path / "e", epochs=0, classifier_dropout=0.4)
    assert saved.config.classifier_dropout == saved.report["recipe"]["classifier_dropout"] == 0.4
    assert [part.p for name, part in saved.model.named_modules() if name == "encoder.dropout"] == [0.4]


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


def tokens(folder: Path, extra: int) -> Path:
    """A base with a tokenizer of so many more tokens; without one for 0."""
    model = tiny("bert", "body")
    if not extra:
        model.save_pretrained(folder)
        return folder
    save(model, folder)
    tokenizer = tiny_tokenizer("bert")
    tokenizer.add_tokens([f"extra{number}" for number in range(extra)])
    tokenizer.save_pretrained(folder)
    return folder


BAD: list[tuple[type[PlaitError], str, dict[str, Any]]] = [
    (RecipeError, "batch_size is 8; expected a multiple of 3", {"accumulate": 3}),
    (RecipeError, "report_to is 'foo': foo is not supported", {"report_to": "foo"}),
    (
        RecipeError,
        "report_to is 'neptune', which is not installed: install it, or choose ",
        {"report_to": "neptune"},
    ),
    (RecipeError, "seed is 4294967296; expected 0 to 4294967295", {"seed": 2**32}),
    (RecipeError, "that of the last model 4294967296", {"seed": 2**32 - 1, "method": "separate"}),
    (DataError, "all labels are 'same'; a classifier needs two or more", {"data": "one.csv"}),
]


@pytest.mark.parametrize(("error", "match", "changes"), BAD, ids=[match for _, match, _ in BAD])
def test_a_plan_refuses_what_a_run_would(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    error: type[PlaitError], match: str, changes: dict[str, Any],
) -> None:  # fmt: skip
    (tmp_path / "one.csv").write_text("text,label\nthe film,same\na book,same\n")
    told = {"base": str(place / "base"), "data": str(place / "train.jsonl"), **QUICK, "combine": "ensemble"}
    told |= {"output": str(tmp_path / "e"), **changes}
    told["data"] = str(tmp_path / told["data"])
    (tmp_path / "recipe.yaml").write_text(json.dumps(told))
    assert command("check", tmp_path / "recipe.yaml") == 2
    assert match in capsys.readouterr().err
    with pytest.raises(error, match=match):
        plait.run(tmp_path / "recipe.yaml")
    assert not (tmp_path / "e").exists()


def test_a_plan_refuses_tokenizers_that_a_run_would(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = len(tiny_tokenizer("bert"))
    mute = shutil.copytree(place / "seed1", tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    asked = (
        (
            (tokens(tmp_path / "large", 2),),
            f"large has ids up to {count + 1}, its embeddings only {count} rows",
        ),
        ((tokens(tmp_path / "none", 0),), "none: no tokenizer in "),
        (("--from", mute), "mute: no tokenizer in "),
    )
    for start, said in asked:
        told = ("ensemble", *start, "--data", place / "train.jsonl", "-o", tmp_path / "e", "--dry-run")
        assert command(*told) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SourceError, match="its embeddings only"):
        plait.ensemble(tmp_path / "large", data=place / "train.jsonl", out=tmp_path / "e", **QUICK)


def test_trackers_and_seeds_of_a_fine_tuning(place: Path, tmp_path: Path) -> None:
    for option in ({"report_to": "foo"}, {"seed": 2**32}):
        with pytest.raises(RecipeError, match=rf"{next(iter(option))} is "):
            plait.finetune(place / "base", place / "train.jsonl", tmp_path / "out", **option)


def test_room_for_factors_is_that_of_what_they_become(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ensembling, "check_space", lambda _, size: asked.append(size))
    told = {"base": str(place / "base"), "data": str(place / "train.jsonl"), "output": "e", "epochs": 1}
    job = ensembling.plan(EnsembleRecipe.model_validate({**told, "method": "batchensemble"}))
    ensembling.announce(job, tmp_path / "e")
    assert asked == [4 * (job.sizes()["saved"] + 3 * job.sizes()["factors"])]


def test_factors_take_as_much_as_is_said(place: Path, tmp_path: Path) -> None:
    told = {**QUICK, "data": place / "train.jsonl", "method": "batchensemble"}
    saved = plait.ensemble(place / "base", out=tmp_path / "e", **told)
    sizes = saved.report["parameters"]
    assert sizes["saved"] == sum(tensor.numel() for tensor in weights(saved.folder).values())
    assert sizes["factors"] < sizes["saved"] < sizes["separate"]
    assert saved.report["shared_layers"] == saved.config.shared_layers == 0
    assert saved.labels == NAMES
