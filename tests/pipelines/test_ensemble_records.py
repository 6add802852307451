"""The folder of an ensemble: its record, card, tokenizer and sizes, and files that are damaged or missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from transformers import AutoTokenizer

import plait
from plait.ensembles.saved import SavedEnsemble
from plait.errors import SourceError
from tests.ensembles import NAMES, QUICK, command, prepare, weights


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def trained(place: Path, tmp_path_factory: pytest.TempPathFactory) -> SavedEnsemble:
    out = tmp_path_factory.mktemp("trained") / "ens"
    return plait.ensemble(place / "base", data=place / "train.jsonl", out=out, **QUICK)


@pytest.fixture
def made(place: Path, tmp_path: Path) -> SavedEnsemble:
    return plait.ensemble(sources=[place / "seed1", place / "seed2"], out=tmp_path / "ens", epochs=0)


def test_what_is_trained_says_how_long_its_texts_were(trained: SavedEnsemble, tmp_path: Path) -> None:
    plait.export(trained, tmp_path / "plain")
    for folder in (trained.folder, tmp_path / "plain"):
        assert AutoTokenizer.from_pretrained(folder).model_max_length == QUICK["max_length"]
    table = {"text": ["the film was good and " * 8, "a book"], "label": ["good", "bad"]}
    default, long = plait.evaluate(trained, table), plait.evaluate(trained, table, max_length=64)
    assert default == plait.evaluate(trained, table, max_length=QUICK["max_length"])
    assert default.tasks["model"].metrics["nll"] != long.tasks["model"].metrics["nll"]
    plain = plait.evaluate(tmp_path / "plain", table).tasks["model"].metrics
    assert plain["accuracy"] == default.tasks["model"].metrics["accuracy"]


def test_the_card_of_passes_with_dropout(place: Path, tmp_path: Path) -> None:
    told: dict[str, Any] = {**QUICK, "data": place / "train.jsonl", "method": "mc-dropout"}
    card = (plait.ensemble(place / "base", out=tmp_path / "e", **told).folder / "README.md").read_text()
    assert "The members are 2 passes with dropout" in card
    assert "asked 2 times with dropout" in card
    assert "mean of the members" not in card
    assert "member_logits" not in card


def test_factors_take_as_much_as_is_said(place: Path, tmp_path: Path) -> None:
    told = {**QUICK, "data": place / "train.jsonl", "method": "batchensemble"}
    saved = plait.ensemble(place / "base", out=tmp_path / "e", **told)
    sizes = saved.report["parameters"]
    assert sizes["saved"] == sum(tensor.numel() for tensor in weights(saved.folder).values())
    assert sizes["factors"] < sizes["saved"] < sizes["separate"]
    assert saved.report["shared_layers"] == saved.config.shared_layers == 0
    assert saved.labels == NAMES


@pytest.mark.parametrize("content", ['{"recipe": 3}', '{"recipe": {"method": []}}'])
def test_a_record_of_something_else(
    made: SavedEnsemble, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (made.folder / "plait.json").write_text(content, encoding="utf-8")
    assert command("export", made.folder, "-o", made.folder.parent / "plain") == 2
    assert "plait.json is damaged" in capsys.readouterr().err


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


def test_strangers_among_separate_models(place: Path, tmp_path: Path) -> None:
    told: dict[str, Any] = {**QUICK, "data": place / "train.jsonl", "method": "separate", "head": "tanh"}
    saved = plait.ensemble(place / "base", out=tmp_path / "e", **told)
    (saved.folder / "members" / ".DS_Store").touch()
    (saved.folder / "members" / "x").mkdir()
    assert [folder.name for folder in saved.folders] == ["0", "1"]
    assert saved.predict(["the film"])
    for folder, lacking in (("0", "lacks 0;"), ("1", "lacks 0, 1;")):
        (saved.folder / "members" / folder).rename(tmp_path / folder)
        with pytest.raises(SourceError, match=lacking):
            plait.load(saved.folder)
