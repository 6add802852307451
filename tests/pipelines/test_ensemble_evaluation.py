"""Evaluation of an ensemble: what made it, its folder, and data of every form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

import plait
from plait.amalgamation.student import Student
from plait.data import read_examples
from plait.ensembles.saved import SavedEnsemble
from plait.errors import DataError
from tests.ensembles import prepare, rows, tagged, write


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


def test_words_are_no_texts_out_of_scope(made: SavedEnsemble, place: Path, tmp_path: Path) -> None:
    words = write(tmp_path / "words.jsonl", tagged(4))
    with pytest.raises(DataError, match="is data for token_classification; --out-of-scope expects texts"):
        plait.evaluate(made.folder, place / "test.jsonl", out_of_scope=words)
