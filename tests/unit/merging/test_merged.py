"""The merged checkpoint on disk: what a damaged one says, and what predictions refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import plait
from plait.data import Examples
from plait.errors import DataError, RecipeError, SourceError
from plait.evaluation.evaluate import predict_answers
from plait.reports.record import kind_of, read_manifest
from tests.models import save, texts, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("merged")
    sources = {
        h: str(save(tiny("bert", h, seed=i), place / h)) for i, h in enumerate(("sequence", "token", "qa"))
    }
    return Path(plait.merge(sources, method="average", out=place / "out").path)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_manifest_round_trip(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert kind_of(folder) == "merged"
    assert kind_of(tmp_path / "none") is None


def test_not_merged(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"is not a merged checkpoint: it has no plait.json"):
        plait.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 1, "tasks": {"a": {"x": 1}}}'])
def test_damaged_manifest(copy: Path, content: str) -> None:
    (copy / "plait.json").write_text(content)
    with pytest.raises(SourceError, match=r"plait.json is damaged"):
        plait.load(copy)


def test_manifest_of_the_future(copy: Path) -> None:
    content = json.loads((copy / "plait.json").read_text())
    content["format"] = 99
    (copy / "plait.json").write_text(json.dumps(content))
    with pytest.raises(SourceError, match="format 99"):
        plait.load(copy)


def test_missing_head(copy: Path) -> None:
    (copy / "tasks" / "sequence" / "head.safetensors").unlink()
    with pytest.raises(SourceError, match="is missing: the merged checkpoint is incomplete"):
        plait.load(copy).task("sequence")


def test_missing_weights_of_the_encoder(copy: Path) -> None:
    file, name = copy / "model.safetensors", "bert.encoder.layer.0.output.dense.bias"
    kept = load_file(file)
    del kept[name]
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=f"the weights do not fit BertModel: lack {name.removeprefix('bert.')}"):
        plait.load(copy).encoder  # noqa: B018


def test_unknown_task(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"no task 'sequense' \(did you mean 'sequence'"):
        plait.load(folder).task("sequense")


@pytest.mark.parametrize(
    ("lines", "task", "message"),
    [
        ([], None, "no text to predict on"),
        (["a", ("b", "c")], None, "text 1 is"),
        ([3], None, "text 0 is 3"),
        (["a"], "qa", "needs pairs"),
    ],
)
def test_texts_that_cannot_be_predicted(
    folder: Path, lines: list[Any], task: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        plait.load(folder).predict(lines, task=task)


def test_order_and_length_do_not_matter(folder: Path) -> None:
    merged = plait.load(folder)
    lines = texts(7, seed=9)
    forward = merged.predict(lines, task="sequence", batch_size=3)
    backward = merged.predict(lines[::-1], task="sequence", batch_size=7)[::-1]
    assert [p["label"] for p in forward] == [p["label"] for p in backward]
    assert [p["score"] for p in forward] == pytest.approx([p["score"] for p in backward], abs=1e-5)


def test_models_work_on_after_a_shared_pass(folder: Path) -> None:
    merged = plait.load(folder)
    merged.predict(texts(2))
    assert merged.task("sequence").bert.encoder is merged.encoder.encoder  # the pooler is its own
    assert merged.task("token").bert is merged.encoder


def test_one_text_alone(folder: Path) -> None:
    assert len(plait.load(folder).predict(texts(1)[0], task="sequence")) == 1


def test_long_texts_are_cut(folder: Path) -> None:
    merged = plait.load(folder)
    assert merged.predict([" ".join(texts(60))], task="sequence")


@pytest.mark.parametrize("unanswerable", [False, True])
@pytest.mark.parametrize("task", ["qa", None])
def test_answers_are_those_of_the_evaluation(folder: Path, task: str | None, unanswerable: bool) -> None:
    merged = plait.load(folder)
    lines = [" ".join(texts(40, seed=seed)) for seed in range(4)] + texts(3, seed=5)
    asked = list(zip(texts(7, seed=9), lines, strict=True))
    found = merged.predict(asked, task=task, batch_size=3, max_length=32, unanswerable=unanswerable)
    answers = found if task else found["qa"]
    examples = Examples(
        tuple(q for q, _ in asked), tuple(c for _, c in asked), kind="question_answering"
    )
    wanted = predict_answers(
        merged.task("qa"), merged.tokenizer, examples, max_length=32, unanswerable=unanswerable
    )
    assert [answer["answer"] for answer in answers] == wanted
    assert all(c[a["start"] : a["end"]] == a["answer"] for a, c in zip(answers, lines, strict=True))
    assert unanswerable or max(a["start"] for a in answers) > len(" ".join(lines[0].split()[:40]))
