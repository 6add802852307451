"""What a merge gives: dtypes, tokenizers, predictions, and the recipe and scores in its record."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import plait
from plait.cli import invoke
from plait.errors import SourceError
from tests.models import save, texts, tiny

Paths = dict[str, str]


@pytest.mark.parametrize("order", [("half", "whole"), ("whole", "half")])
def test_mixed_dtypes_have_one_output_dtype(tmp_path: Path, order: tuple[str, str]) -> None:
    save(tiny("bert", "sequence", seed=1).half(), tmp_path / "half")
    save(tiny("bert", "sequence", seed=2), tmp_path / "whole")
    merged = plait.merge({n: str(tmp_path / n) for n in order}, method="average", out=tmp_path / "m")
    assert merged.encoder.dtype == torch.float32
    for name in order:
        with safe_open(tmp_path / "m" / "tasks" / name / "head.safetensors", "pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float32}  # noqa: SIM118
    assert set(merged.predict(texts(2))) == set(order)


def test_no_tokenizer_is_said_not_made_up(tmp_path: Path) -> None:
    names = ("a", "b")
    paths = {
        n: str(save(tiny("bert", "sequence", seed=i), tmp_path / n, tokenizer=False))
        for i, n in enumerate(names)
    }
    merged = plait.merge(paths, method="average", out=tmp_path / "m")
    with pytest.raises(SourceError, match="has no tokenizer"):
        merged.predict(texts(1))
    assert invoke(["export", str(merged.path), "--task", "a", "-o", str(tmp_path / "x")]) == 0
    assert not list((tmp_path / "x").glob("tokenizer*"))


@pytest.mark.parametrize("family", ["roberta", "bert"])
def test_long_texts_are_cut_at_what_the_model_can_take(family: str, tmp_path: Path) -> None:
    source = save(tiny(family, "sequence"), tmp_path / "s")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings.pop("model_max_length", None)
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    merged = plait.merge({"a": str(source)}, method="average", out=tmp_path / "m")
    line = " ".join(texts(80))
    assert merged.predict([line], task="a")
    assert merged.predict([line], task="a", max_length=500)


def test_threads_do_not_answer_for_each_other(sources: Paths, tmp_path: Path) -> None:
    merged = plait.merge(sources, method="average", out=tmp_path / "m")
    lines, others = texts(4, seed=1), texts(4, seed=2)
    wanted = [p["score"] for p in merged.predict(lines, task="mood")]
    stop, wrong = threading.Event(), []

    def disturb() -> None:
        while not stop.is_set():
            merged.predict(others)

    thread = threading.Thread(target=disturb)
    thread.start()
    for _ in range(40):
        found = [p["score"] for p in merged.predict(lines, task="mood")]
        wrong += [] if found == pytest.approx(wanted, abs=1e-5) else [found]
    stop.set()
    thread.join()
    assert wrong == []


def test_sources_of_one_task_are_scored_by_label_name(tmp_path: Path) -> None:
    model = tiny("bert", "sequence", seed=1, labels=3)
    save(model, tmp_path / "one")
    turn, names = [2, 0, 1], dict(model.config.id2label)
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[turn].clone())
        model.classifier.bias.copy_(model.classifier.bias[turn].clone())
    model.config.id2label = {i: names[t] for i, t in enumerate(turn)}
    model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    save(model, tmp_path / "two")
    both = {n: str(tmp_path / n) for n in ("one", "two")}
    merged = plait.merge(both, tasks=dict.fromkeys(both, "mood"), method="average", out=tmp_path / "m")
    labels = [list(names.values()).index(p["label"]) for p in merged.predict(texts(9), task="mood")]
    found = plait.evaluate(merged, {"mood": {"text": texts(9), "label": labels}}).tasks["mood"]
    assert found.metrics["accuracy"] == 1.0
    assert {name: m["accuracy"] for name, m in found.sources.items()} == {"one": 1.0, "two": 1.0}


@pytest.mark.parametrize("method", ["average", "fisher", "regmean", "slerp"])
def test_recorded_recipe_runs_again(sources: Paths, data: Paths, tmp_path: Path, method: str) -> None:
    two = {n: sources[n] for n in ("mood", "type")}
    named = {n: data[n] for n in two} if method in {"fisher", "regmean"} else None
    merged = plait.merge(two, data=named, method=method, out=tmp_path / "m")
    recipe = {**merged.manifest.recipe, "output": str(tmp_path / "again")}
    again = plait.run(recipe)
    first, second = (m.encoder.state_dict() for m in (merged, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_scores_in_memory_are_recorded_under_the_final_name(sources: Paths, tmp_path: Path) -> None:
    judged: dict[str, Any] = {"type": {"text": texts(4), "label": [0, 1, 0, 1]}}
    merged = plait.merge(sources, method="average", evaluate=judged, out=tmp_path / "m")
    assert merged.manifest.scores["model"] == str(tmp_path / "m")
    assert merged.manifest.scores["tasks"]["type"]["examples"] == 4


def test_a_finished_merge_is_scored_when_that_is_asked_for_later(
    sources: Paths, data: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m"
    two = [f"{name}={sources[name]}" for name in ("mood", "type")]
    command = ["merge", *two, "--method", "average", "-o", str(out)]
    assert invoke(command) == 0
    weights = (out / "model.safetensors").stat().st_mtime_ns
    assert plait.load(out).manifest.scores == {}
    scoring = [*command, "--evaluate", f"mood={data['mood']}", "--resume"]
    assert invoke(scoring) == 0
    record = json.loads((out / "plait.json").read_text())
    wanted = plait.evaluate(out, {"mood": data["mood"]}, resamples=0).tasks["mood"].metrics
    assert record["scores"]["tasks"]["mood"]["metrics"] == pytest.approx(dict(wanted))
    assert record["recipe"]["evaluate"]
    assert "accuracy" in (out / "README.md").read_text()
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    capsys.readouterr()
    assert invoke(scoring) == 0
    assert "there is nothing to resume" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    assert (out / "model.safetensors").stat().st_mtime_ns == weights
