"""The texts of an amalgamation: their columns, and the labels that some of them have."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.amalgamation.plan import plan
from plait.data import open_texts
from plait.recipe.arguments import amalgamation_recipe
from plait.teachers import Settings, score_texts
from tests.models import texts
from tests.two_teachers import QUICK, Paths


def test_columns_of_texts_in_memory(place: Path, teachers: Paths, tmp_path: Path) -> None:
    rows = {"left": texts(20), "right": texts(20, seed=4), "topic": ["World"] * 20}
    told: dict[str, Any] = {"texts": rows, "text": "left", "text_pair": "right"}
    store = plait.posteriors(teachers, out=tmp_path / "p", passes=0, **told)
    paired = score_texts(
        tmp_path / "q",
        open_texts({"text": rows["left"], "text_pair": rows["right"]}),  # type: ignore[arg-type]
        plan(
            amalgamation_recipe(
                teachers, out=tmp_path / "s", texts=None, student=place / "base", validation=None, options={}
            ),
            rows["left"],
        ).teachers,
        Settings(passes=0, keep="features", max_length=128),
    )
    assert torch.equal(store.posterior("news").logits, paired.posterior("news").logits)
    student = plait.amalgamate(
        teachers, out=tmp_path / "s", student=place / "base", label="topic", gate="oracle", **told, **QUICK
    )
    assert student.report["who_taught_what"]["routing"]["accuracy"] == 1


def test_the_columns_of_the_texts_are_said(
    teachers: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"premise": "One text.", "hypothesis": "Another."}\n' * 3)
    with caplog.at_level(logging.INFO, "plait"):
        plait.posteriors(teachers, texts=file, out=tmp_path / "store", passes=0)
    assert f"{file}: text=premise, text_pair=hypothesis" in caplog.text
    assert caplog.text.count("text=premise") == 1


def test_labels_of_texts_are_matched_as_all_others(
    place: Path, teachers: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"text": texts(6), "topic": ["world", "Sports", None, "TECH", "Cooking", "Business"]}
    told: dict[str, Any] = {"student": place / "base", **QUICK}
    student = plait.amalgamate(teachers, texts=rows, label="topic", out=tmp_path / "s", **told)
    assert student.report["who_taught_what"]["routing"]["labelled"] == 4
    assert "1 texts have labels that no teacher knows (Cooking)" in caplog.text
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "the film", "topic": "world"}\n{"text": "a book", "topic": "Tech"}\n')
    oracle = plait.amalgamate(teachers, texts=file, label="topic", gate="oracle", out=tmp_path / "o", **told)
    assert oracle.report["who_taught_what"]["routing"]["accuracy"] == 1.0


def test_places_in_the_union_are_said(
    place: Path, teachers: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"text": texts(20), "label": [at % 4 for at in range(20)]}
    student = plait.amalgamate(
        teachers,
        texts=rows,
        label="label",
        gate="oracle",
        student=place / "base",
        out=tmp_path / "s",
        **QUICK,
    )
    assert student.report["who_taught_what"]["routing"]["labelled"] == 20
    said = "labels are numbers, read as places in the union: 0 = World, 1 = Business, 2 = Sports, 3 = Tech"
    assert said in caplog.text
    caplog.clear()
    plait.evaluate(student, rows)
    assert said in caplog.text
