"""Every family and every kind of head goes through the whole merge, by average and by data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

import plait
from plait.cli import invoke
from tests.models import FAMILIES, save, texts, tiny

CONTEXT = "mary was in paris and john was in london"


def columns(head: str) -> dict[str, Any]:
    lines = texts(6, seed=5)
    match head:
        case "sequence":
            return {"text": lines, "label": [i % 3 for i in range(6)]}
        case "regression":
            return {"text": lines, "label": [0.5 * i for i in range(6)]}
        case "multi_label":
            return {"text": lines, "label": [[i % 2, 1, 0] for i in range(6)]}
        case "token":
            words = [line.split() for line in lines]
            return {"tokens": words, "tags": [[j % 3 for j in range(len(w))] for w in words]}
        case _:
            return {
                "question": ["who was in paris ?"] * 2,
                "context": [CONTEXT] * 2,
                "answers": [{"text": ["mary"], "answer_start": [0]}] * 2,
            }


def make(family: str, heads: tuple[str, ...], folder: Path) -> dict[str, str]:
    return {h: str(save(tiny(family, h, seed=i), folder / h)) for i, h in enumerate(heads)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "average"},
        {"method": "fisher", "importance": "mask_nodes", "normalize": "tensor"},
        {"method": "fisher", "importance": "mask_nodes", "mapping": "structural", "labels": "exact"},
        {"method": "fisher", "importance": "diagonal"},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_family(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    heads = ("sequence", "regression", "multi_label", "token", "qa")
    sources = make(family, heads, tmp_path)
    data = {h: columns(h) for h in heads} if settings["method"] == "fisher" else None
    merged = plait.merge(sources, data=data, out=tmp_path / "merged", **settings)
    singles = merged.predict(texts(3))
    assert set(singles) == {"sequence", "regression", "multi_label", "token"}
    assert set(singles["sequence"][0]) == {"label", "score", "scores"}
    assert set(singles["regression"][0]) == {"value"}
    assert set(singles["multi_label"][0]) == {"labels", "scores"}
    assert [w["word"] for w in singles["token"][0]] == texts(3)[0].replace("?", " ?").split()
    answer = merged.predict([("who was in paris ?", CONTEXT)], task="qa")[0]
    assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]]
    scores = plait.evaluate(merged, {h: columns(h) for h in heads})
    assert set(scores.tasks) == set(heads)


@pytest.mark.parametrize("family", FAMILIES)
def test_merge_of_one_gives_it_back(family: str, tmp_path: Path) -> None:
    for head in ("sequence", "token", "qa"):
        model = tiny(family, head, seed=4)
        source = str(save(model, tmp_path / head))
        merged = plait.merge({"only": source}, method="average", out=tmp_path / f"{head}-merged")
        ours = merged.task("only").state_dict()
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(ours[name], tensor)


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2"])
@pytest.mark.parametrize(
    ("head", "auto"), [("token", AutoModelForTokenClassification), ("qa", AutoModelForQuestionAnswering)]
)
def test_export_of_tokens_and_answers(family: str, head: str, auto: Any, tmp_path: Path) -> None:
    merged = plait.merge(
        make(family, ("sequence", head), tmp_path), method="average", out=tmp_path / "merged"
    )
    assert invoke(["export", str(merged.path), "--task", head, "-o", str(tmp_path / "plain")]) == 0
    plain = auto.from_pretrained(tmp_path / "plain")
    ours = merged.task(head).state_dict()
    assert set(plain.state_dict()) <= set(ours)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(ours[name], tensor)


def test_bodies_without_heads(tmp_path: Path) -> None:
    bodies = {f"b{i}": str(save(tiny("bert", "body", seed=i), tmp_path / f"b{i}")) for i in range(2)}
    merged = plait.merge(bodies, method="average", out=tmp_path / "merged")
    assert merged.task("b0") is merged.encoder
    inputs = merged.tokenizer(texts(2), padding=True, return_tensors="pt")
    assert merged.encoder(**inputs).last_hidden_state.shape[0] == 2
