"""Answers beside the truth: intervals, tables per class, and the rows that are written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

from plait.data import Examples
from plait.data.labels import IGNORED
from plait.data.writing import check_table, write_table
from plait.errors import OutputError
from plait.evaluation import metrics, outcome_scores
from plait.evaluation.outcome import Outcome
from plait.evaluation.scores import Evaluation, TaskScores

NAMES = ("no", "yes", "maybe")


def single(rows: int = 60, seed: int = 0) -> Outcome:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 3, generator=draw)
    labels = torch.where(torch.rand(rows, generator=draw) < 0.7, logits.argmax(-1), torch.zeros(rows).long())
    texts = tuple(f"text {at}" for at in range(rows))
    return Outcome(Examples(texts, labels=tuple(labels.tolist())), list(logits), names=NAMES)


def many() -> Outcome:
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 3, generator=draw)
    labels = tuple(tuple(float(v > 0.3) for v in row) for row in (logits + torch.randn(40, 3, generator=draw)))
    examples = Examples(tuple("a" for _ in labels), labels=labels)
    return Outcome(examples, list(logits), names=NAMES, problem="multi_label_classification")


def numbers() -> Outcome:
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(50, 1, generator=draw)
    labels = tuple((logits[:, 0] + torch.randn(50, generator=draw)).tolist())
    return Outcome(Examples(("a",) * 50, labels=labels), list(logits), problem="regression")


def tags() -> Outcome:
    draw = torch.Generator().manual_seed(3)
    logits = [torch.randn(n, 3, generator=draw) for n in (3, 5, 2, 4)]
    labels = tuple(
        tuple(int(v) for v in torch.randint(0, 3, (len(row),), generator=draw)) for row in logits
    )
    labels = ((IGNORED, *labels[0][1:]), *labels[1:])
    logits[1][4] = -torch.inf
    words = tuple(tuple("w" for _ in row) for row in labels)
    return Outcome(Examples(words, labels=labels, kind="token_classification"), logits, names=NAMES)


def questions() -> Outcome:
    truth = ((("red fox", 0),), (("a dog", 0), ("dog", 2)), (("cat", 0),))
    examples = Examples(("who?",) * 3, ("ctx",) * 3, truth, kind="question_answering")
    return Outcome(examples, answers=["fox", "dog", "bird"])


@pytest.mark.parametrize(
    ("made", "metric"),
    [(single, "accuracy"), (many, "macro_f1"), (numbers, "pearson"), (tags, "accuracy"), (questions, "f1")],
)
def test_interval_resamples_the_metric_itself(made, metric) -> None:
    outcome = made()
    whole = outcome.row_sums(metric).value
    assert whole == pytest.approx(outcome_scores(outcome)[metric])
    found = outcome.interval(metric, resamples=200, seed=3)
    assert found.low <= whole <= found.high
    assert found == outcome.interval(metric, resamples=200, seed=3)
    if made is not questions:  # three questions have few different means
        assert found != outcome.interval(metric, resamples=200, seed=4)


def test_interval_of_numbers_is_that_of_pearson_on_resampled_rows() -> None:
    outcome = numbers()
    sums = outcome.row_sums("pearson")
    picked = np.random.default_rng(0).integers(0, 50, 50)
    x = torch.stack(list(outcome.logits)).numpy()[picked]
    y = np.asarray(outcome.examples.labels)[picked]
    expected = metrics.regression(x, y)["pearson"]
    assert sums.scores(sums.rows[picked].sum(0, keepdims=True))[0] == pytest.approx(expected)


def test_no_interval_for_one_row_or_none() -> None:
    assert single(1).interval("accuracy") is None
    assert single().interval("accuracy", resamples=0) is None


def test_per_class() -> None:
    table = single().per_class()
    assert [row["label"] for row in table] == list(NAMES)
    assert sum(row["examples"] for row in table) == 60
    said = [at == 1 for at, row in zip(single().examples.labels, single().logits, strict=True) if row.argmax() == 1]
    assert table[1]["precision"] == pytest.approx(np.mean(said))
    assert [row["label"] for row in many().per_class()] == list(NAMES)
    assert sum(row["examples"] for row in tags().per_class()) == 3 + 5 + 2 + 4 - 2
    assert numbers().per_class() == questions().per_class() == []


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("made", [single, many, numbers, tags, questions])
def test_predictions_are_written(tmp_path: Path, suffix: str, made) -> None:
    file = tmp_path / f"rows{suffix}"
    columns = made().columns()
    write_table(check_table(file, "--predictions"), columns)
    if suffix == ".parquet":
        assert parquet.read_table(file).to_pydict() == columns
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert {name: [row[name] for row in rows] for name in columns} == columns
    else:
        with file.open(newline="") as handle:
            rows = list(csv.DictReader(handle))
        assert [row["row"] for row in rows] == [str(n) for n in columns["row"]]


def test_rows_say_what_was_answered() -> None:
    columns = single().columns()
    assert columns["prediction"][0] == NAMES[int(single().logits[0].argmax())]
    assert tags().columns()["label"][0][0] is None
    assert tags().columns()["prediction"][1][4] is None
    assert questions().columns()["label"][1] == ["a dog", "dog"]


def test_tables_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"expected one of .csv, .jsonl, .parquet"):
        check_table(tmp_path / "rows.xlsx", "--predictions")
    with pytest.raises(OutputError, match="make it first"):
        check_table(tmp_path / "no" / "rows.csv", "--predictions")


def test_several_files_have_a_mean() -> None:
    one, other = single(), single(30, seed=5)
    scored = {
        name: TaskScores(outcome_scores(o), "accuracy", len(o.examples), outcome=o)
        for name, o in {"films": one, "books": other}.items()
    }
    found = Evaluation("soup", scored).with_intervals(resamples=50)
    rows = found.rows()
    assert [row["task"] for row in rows] == ["films", "books", "mean"]
    assert float(rows[2]["score"]) == pytest.approx(found.mean, abs=5e-4)
    assert found.to_dict()["tasks"]["films"]["interval"]["resamples"] == 50
    assert found.predictions()["task"] == ["films"] * 60 + ["books"] * 30
