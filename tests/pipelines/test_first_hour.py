"""What a new user meets: files of several domains, hints, errors that say what could be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import plait
from plait.cli import invoke
from plait.errors import DataError, RecipeError
from tests.conftest import write_rows
from tests.models import save, texts, tiny

NAMES = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hour")
    for seed, name in enumerate(("films", "books")):
        model = tiny("bert", "sequence", labels=2, seed=seed)
        model.config.update(NAMES)
        save(model, folder / name)
        rows = [{"text": t, "label": "yes" if at % 2 else "no"} for at, t in enumerate(texts(20, seed=seed))]
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def soup(place: Path) -> Path:
    told = {"tasks": {"films,books": "mood"}, "method": "average"}
    return plait.merge([place / "films", place / "books"], out=place / "soup", **told).folder


def test_a_soup_is_scored_per_domain(
    place: Path, soup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", str(soup), "--json", "--per-class", "--predictions", str(tmp_path / "p.csv")]
    asked += ["--data", f"films={place}/films.jsonl", "--data", f"books={place}/books.jsonl"]
    assert invoke(asked) == 0
    found = json.loads(capsys.readouterr().out)
    scores = {name: task["metrics"]["accuracy"] for name, task in found["tasks"].items()}
    assert list(scores) == ["films", "books"]
    assert found["mean"] == pytest.approx(sum(scores.values()) / 2)
    interval = found["tasks"]["films"]["interval"]
    assert interval["low"] <= scores["films"] <= interval["high"]
    assert [row["label"] for row in found["per_class"]["films"]] == ["no", "yes"]
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == "task,row,text,label,prediction,score"
    assert len(lines) == 41


def test_files_of_any_name_for_an_ordinary_checkpoint(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: place / f"{name}.jsonl" for name in ("films", "books")}
    found = plait.evaluate(place / "films", files, resamples=20, seed=1)
    assert [row["task"] for row in found.rows()] == ["films", "books", "mean"]
    assert found.tasks["films"].interval.resamples == 20
    again = plait.evaluate(place / "films", files, resamples=20, seed=1)
    assert again.tasks["films"].interval == found.tasks["films"].interval
    asked = ["evaluate", str(place / "films"), "--per-class"]
    assert invoke([*asked, "--data", f"a={files['films']}", "--data", f"b={files['books']}"]) == 0
    shown = capsys.readouterr().out
    assert "mean" in shown
    assert "precision" in shown


def test_data_of_one_source_is_not_left_unused(place: Path, tmp_path: Path) -> None:
    told = {"out": tmp_path / "m", "data": {"films": place / "films.jsonl"}}
    with pytest.raises(RecipeError, match=r"books has none: give --data books=FILE .texts without labels are enough"):
        plait.merge([place / "films", place / "books"], **told)


def test_missing_data_says_what_could_be_had(place: Path, tmp_path: Path) -> None:
    sources = [place / "films", place / "books"]
    with pytest.raises(RecipeError, match="regmean takes texts without labels, with a base"):
        plait.merge(sources, out=tmp_path / "m", method="fisher")
    with pytest.raises(RecipeError, match="give --base MODEL, or use --method average"):
        plait.merge(sources, out=tmp_path / "m", method="ties")


def test_equal_labels_are_hinted_at(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["merge", str(place / "films"), str(place / "books"), "--method", "average", "--dry-run"]
    assert invoke([*asked, "-o", str(tmp_path / "m")]) == 0
    assert "films and books have the same labels (no, yes)" in (said := capsys.readouterr().err)
    assert "--task films,books=NAME" in said
    assert invoke([*asked, "-o", str(tmp_path / "m"), "--task", "films,books=mood"]) == 0
    assert "same labels" not in capsys.readouterr().err


def test_a_missing_label_column_lists_what_was_seen(place: Path, tmp_path: Path) -> None:
    rows = [{"text": t, "mood": "yes", "id": at} for at, t in enumerate(texts(6))]
    file = write_rows(tmp_path / "films.jsonl", rows)
    seen = r"has no labels; .* found columns text, mood, id; name one \(label, --label-column\)"
    with pytest.raises(DataError, match=seen):
        plait.evaluate(place / "films", file)
    with pytest.raises(DataError, match=seen):
        plait.finetune(place / "films", file, tmp_path / "out")
    with pytest.raises(DataError, match=seen):
        plait.estimate(place / "films", file)
