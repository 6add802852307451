"""What reviews found: each of these was wrong once."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

import plait
from plait.cli import invoke
from plait.errors import DataError, OutputError, RecipeError, SourceError
from tests.models import save, texts, tiny

Paths = dict[str, str]


@pytest.mark.parametrize("place", ["same", "above", "inside"])
def test_output_never_replaces_a_source(sources: Paths, tmp_path: Path, place: str) -> None:
    ours = {n: str(shutil.copytree(p, tmp_path / "ck" / n)) for n, p in sources.items() if n != "value"}
    out = {
        "same": tmp_path / "ck" / "mood",
        "above": tmp_path / "ck",
        "inside": tmp_path / "ck" / "mood" / "x",
    }[place]
    with pytest.raises(OutputError, match="choose another output"):
        plait.merge(ours, method="average", out=out, overwrite=True)
    assert all((Path(p) / "model.safetensors").is_file() for p in ours.values())


def test_cache_knows_labels_and_settings(tmp_path: Path) -> None:
    model = tiny("bert", "sequence", labels=3)
    rows = {"text": texts(6), "label": [f"sequence-{i % 3}" for i in range(6)]}
    source = save(model, tmp_path / "m")
    first = plait.estimate(str(source), rows)
    config = json.loads((source / "config.json").read_text())
    config["id2label"] = {"0": "sequence-2", "1": "sequence-1", "2": "sequence-0"}
    (source / "config.json").write_text(json.dumps(config))
    turned = plait.estimate(str(source), rows)
    assert not torch.allclose(first.heads, turned.heads)
    config["num_attention_heads"] = 2
    (source / "config.json").write_text(json.dumps(config))
    assert plait.estimate(str(source), rows).heads.shape == (2, 2)


def test_damaged_or_unwritable_cache_does_not_stop_a_merge(
    sources: Paths, data: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    first = plait.estimate(sources["mood"], data["mood"])
    for file in (tmp_path / "cache" / "statistics").iterdir():
        file.write_bytes(b"nonsense")
    assert torch.equal(plait.estimate(sources["mood"], data["mood"]).heads, first.heads)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "file"))
    assert torch.equal(plait.estimate(sources["mood"], data["mood"]).heads, first.heads)


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


def test_half_precision_sources_are_estimated_in_full(tmp_path: Path) -> None:
    model = tiny("bert", "sequence")
    rows = {"text": texts(6), "label": [0, 1, 2, 0, 1, 2]}
    half = save(model.half(), tmp_path / "half")
    whole = save(model.float(), tmp_path / "whole")
    a = plait.estimate(str(half), rows, importance="diagonal")
    b = plait.estimate(str(whole), rows, importance="diagonal")
    for name, tensor in b.tensors.items():
        torch.testing.assert_close(a.tensors[name], tensor, rtol=1e-4, atol=1e-12)


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


def test_a_merged_checkpoint_is_not_a_source(sources: Paths, tmp_path: Path) -> None:
    plait.merge(sources, method="average", out=tmp_path / "m")
    with pytest.raises(RecipeError, match="plait export one task"):
        plait.merge({"a": str(tmp_path / "m"), "b": sources["mood"]}, method="average", out=tmp_path / "n")


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


@pytest.mark.parametrize("method", ["average", "fisher", "regmean", "slerp"])
def test_recorded_recipe_runs_again(sources: Paths, data: Paths, tmp_path: Path, method: str) -> None:
    two = {n: sources[n] for n in ("mood", "type")}
    named = {n: data[n] for n in two} if method in {"fisher", "regmean"} else None
    merged = plait.merge(two, data=named, method=method, out=tmp_path / "m")
    recipe = {**merged.manifest.recipe, "output": str(tmp_path / "again")}
    again = plait.run(recipe)
    first, second = (m.encoder.state_dict() for m in (merged, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_evaluating_a_body_and_columns(sources: Paths, tmp_path: Path) -> None:
    body = save(tiny("bert", "body"), tmp_path / "b")
    with pytest.raises(DataError, match="without a head"):
        plait.evaluate(str(body), {"text": texts(3), "label": [0, 1, 0]})
    found = plait.evaluate(sources["type"], {"text": texts(3), "label": [0, 1, 0]})
    assert found.tasks["model"].examples == 3


def test_export_of_a_body_without_a_pooler(tmp_path: Path) -> None:
    source = save(tiny("roberta", "sequence"), tmp_path / "s")
    body = tmp_path / "b"
    AutoModelForSequenceClassification.from_pretrained(source).roberta.save_pretrained(body)
    merged = plait.merge({"s": str(source), "b": str(body)}, method="average", out=tmp_path / "m")
    assert plait.load(str(merged.path)).task("b") is not None
    assert invoke(["export", str(merged.path), "--task", "b", "-o", str(tmp_path / "x")]) == 0


def test_scores_in_memory_are_recorded_under_the_final_name(sources: Paths, tmp_path: Path) -> None:
    judged: dict[str, Any] = {"type": {"text": texts(4), "label": [0, 1, 0, 1]}}
    merged = plait.merge(sources, method="average", evaluate=judged, out=tmp_path / "m")
    assert merged.manifest.scores["model"] == str(tmp_path / "m")
    assert merged.manifest.scores["tasks"]["type"]["examples"] == 4


def test_check_reads_the_data(sources: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {
        "sources": {n: {"model": p, "data": str(tmp_path / "none.parquet")} for n, p in sources.items()}
    }
    (tmp_path / "r.yaml").write_text(
        json.dumps({**recipe, "method": "regmean", "output": str(tmp_path / "m")})
    )
    assert invoke(["check", str(tmp_path / "r.yaml")]) == 2
    assert "none.parquet" in capsys.readouterr().err


def test_a_source_without_weight_decides_nothing() -> None:
    from plait.merging.rule import RULES

    params = torch.tensor([[1.0, 1.0], [0.0, 0.0], [9.0, 9.0]])
    importances = torch.tensor([[1e-9, 3e-9], [3e-9, 1e-9], [1e2, 1e2]])
    weights = torch.tensor([1.0, 1.0, 0.0])
    found = RULES["fisher"].function(params, importances, importances.mean(1), weights)
    torch.testing.assert_close(found, torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "albert"])
def test_gram_does_not_depend_on_a_last_batch_of_one(family: str) -> None:
    from tests.models import tiny_tokenizer

    model, tokenizer = tiny(family, "sequence"), tiny_tokenizer(family)
    rows = {"text": texts(5), "label": [0, 1, 2, 0, 1]}
    a, b = (
        plait.estimate(model, rows, importance="gram", tokenizer=tokenizer, batch_size=size)
        for size in (5, 4)
    )
    for name, tensor in a.tensors.items():
        torch.testing.assert_close(b.tensors[name], tensor, rtol=1e-4, atol=1e-6)
