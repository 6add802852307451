"""Saved ensembles as models: more tokens, rows for all examples, hidden states, and weights read once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import plait
from plait.ensembles import saved as ensembles
from plait.ensembles.saved import SavedEnsemble
from tests.ensembles import QUICK, inputs, prepare


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def made(place: Path, tmp_path_factory: pytest.TempPathFactory) -> SavedEnsemble:
    sources, out = [place / "seed1", place / "seed2"], tmp_path_factory.mktemp("made") / "ens"
    return plait.ensemble(sources=sources, out=out, epochs=0, shared_layers=1)


def test_more_tokens_survive_saving(made: SavedEnsemble, tmp_path: Path) -> None:
    model, texts = plait.load(made.folder), inputs(made.folder)
    expected = model(**texts).logits
    model.resize_token_embeddings(200)
    assert (
        model.config.vocab_size == model.config.encoder.vocab_size == model.encoder.config.vocab_size == 200
    )
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert len(again.get_input_embeddings().weight) == again.config.vocab_size == 200
    torch.testing.assert_close(again(**texts).logits, expected)


@pytest.mark.parametrize("name", ["position_ids", "attention_mask"])
def test_one_row_stands_for_all_examples(made: SavedEnsemble, name: str) -> None:
    model, texts = plait.load(made.folder), inputs(made.folder)
    rows, length = texts["input_ids"].shape
    given = torch.arange(length) if name == "position_ids" else (torch.arange(length) < 4).long()
    expected = model(**{**texts, name: given.repeat(rows, 1)}, replicate_at=0).logits
    for depth in (0, 1):
        found = model(**{**texts, name: given[None]}, replicate_at=depth).logits
        torch.testing.assert_close(found, expected)


def test_hidden_states_by_configuration(place: Path, made: SavedEnsemble, tmp_path: Path) -> None:
    whole = plait.ensemble(sources=[place / "seed1", place / "seed2"], out=tmp_path / "a", epochs=0).model
    one = plait.ensemble(sources=[place / "seed1"], out=tmp_path / "b", epochs=0, shared_layers=1).model
    texts = inputs(made.folder)
    for model in (whole, one, one.train()):
        model.config.output_hidden_states = True
        assert len(model(**texts).hidden_states) == 3
        assert model(**texts, output_hidden_states=False).hidden_states is None
    several = plait.load(made.folder)
    several.config.output_hidden_states = True
    with pytest.raises(ValueError, match="output_hidden_states: the members have layers of their own"):
        several(**texts)


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
