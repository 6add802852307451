"""Heads of placeholder labels told their names: `--labels`, in Python and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from transformers import AutoConfig

import plait
from plait.cli import invoke
from plait.data.reading import one_text, to_predict
from plait.errors import DataError, RecipeError, SourceError
from tests.models import texts

NAMES = ("negative", "positive")


@pytest.fixture
def unnamed(sources: dict[str, str], tmp_path: Path) -> str:
    """A copy of a source whose head calls its two labels 0 and 1."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    found = next(p for p in sources.values() if AutoConfig.from_pretrained(p).num_labels == 2)
    model = AutoModelForSequenceClassification.from_pretrained(found)
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    model.config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    model.save_pretrained(tmp_path / "unnamed")
    AutoTokenizer.from_pretrained(found).save_pretrained(tmp_path / "unnamed")
    return str(tmp_path / "unnamed")


def labelled(*labels: str) -> dict[str, list[str]]:
    return {"text": texts(len(labels)), "label": list(labels)}


def test_evaluate_takes_the_names_of_a_head(unnamed: str, tmp_path: Path) -> None:
    data = labelled("positive", "negative", "positive", "negative")
    with pytest.raises(DataError, match=r"say what these stand for: labels \(--labels"):
        plait.evaluate(unnamed, data)
    numbers = plait.evaluate(unnamed, {"text": data["text"], "label": [1, 0, 1, 0]})
    for names in (NAMES, "negative,positive", {"sst": list(NAMES)}):
        assert plait.evaluate(unnamed, data, labels=names).tasks["model"].metrics == numbers.tasks["model"].metrics
    (tmp_path / "d.json").write_text(json.dumps(data))
    assert invoke(["evaluate", unnamed, "--data", str(tmp_path / "d.json"), "--labels", "negative,positive"]) == 0
    with pytest.raises(SourceError, match=r"3 labels are given \(a, b, c\), the head has 2"):
        plait.evaluate(unnamed, data, labels="a,b,c")


def test_declared_names_are_positions_of_a_head_without_names(unnamed: str) -> None:
    data = datasets.Dataset.from_dict({"text": texts(4), "label": [0, 1, 1, 0]})
    data = data.cast_column("label", datasets.ClassLabel(names=list(NAMES)))
    assert plait.evaluate(unnamed, data).tasks["model"].examples == 4


def test_a_merge_keeps_the_names(unnamed: str, tmp_path: Path) -> None:
    command = ["merge", f"sst={unnamed}", f"other={unnamed}", "--method", "average", "-o", str(tmp_path / "m")]
    assert invoke([*command, "--labels", "sst=negative,positive"]) == 0
    merged = plait.load(tmp_path / "m")
    assert merged.about("sst").labels == NAMES
    assert merged.about("other").labels == ("LABEL_0", "LABEL_1")
    assert AutoConfig.from_pretrained(tmp_path / "m" / "tasks" / "sst").id2label == dict(enumerate(NAMES))
    data = labelled("yes", "no")
    assert plait.evaluate(merged, {"other": data}, labels={"other": "no,yes"}).tasks["other"].examples == 2
    with pytest.raises(RecipeError, match="labels of no task 'othr'"):
        plait.evaluate(merged, {"other": data}, labels={"othr": "no,yes"})
    assert invoke([*command, "--labels", "sts=negative,positive", "--overwrite"]) == 2


def test_a_text_is_never_taken_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("text\na\nb\n")
    assert to_predict("owner/name").texts == ("owner/name",)
    assert to_predict(["", "x.csv"]).texts == ("", "x.csv")
    assert to_predict(Path("x.csv")).texts == ("a", "b")
    assert one_text("a" * 10_000) == "a" * 10_000
    with pytest.raises(DataError, match=r"x.csv: is a file; give Path\('x.csv'\) .* or \['x.csv'\] for this text"):
        to_predict("x.csv")
    with pytest.raises(DataError, match="1 row without a text; expected one to predict on in each"):
        to_predict({"text": ["a", None]})
