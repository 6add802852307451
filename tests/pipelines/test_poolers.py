"""A pooler belongs to the head: each task keeps its own beside the merged encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

import plait
from plait.cli import invoke
from tests.models import save, texts, tiny
from tests.pipelines.test_families import make

POOLED = {"bert": "bert.pooler.dense.weight", "albert": "albert.pooler.weight"}


def kept(folder: Path, task: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "tasks" / task / "head.safetensors")


@pytest.mark.parametrize("family", POOLED)
def test_each_task_keeps_its_sources_pooler(family: str, tmp_path: Path) -> None:
    sources = make(family, ("sequence", "regression", "token"), tmp_path)
    merged = plait.merge(sources, method="average", out=tmp_path / "m")
    for head in ("sequence", "regression"):
        own = AutoModelForSequenceClassification.from_pretrained(sources[head]).state_dict()
        assert torch.equal(kept(merged.path, head)[POOLED[family]], own[POOLED[family]])
        assert torch.equal(merged.task(head).state_dict()[POOLED[family]], own[POOLED[family]])
    assert POOLED[family] not in kept(merged.path, "token")
    assert merged.task("sequence").base_model.encoder is merged.task("token").base_model.encoder


@pytest.mark.parametrize("family", POOLED)
def test_all_tasks_at_once_say_what_each_says_alone(family: str, tmp_path: Path) -> None:
    merged = plait.merge(
        make(family, ("sequence", "regression", "multi_label", "token"), tmp_path), method="average",
        out=tmp_path / "m",
    )  # fmt: skip
    lines = texts(5)
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    merged.encoder.encoder.register_forward_pre_hook(count)
    together = merged.predict(lines)
    assert passes == 1
    for task in ("sequence", "regression", "multi_label"):
        for one, other in zip(together[task], merged.predict(lines, task=task), strict=True):
            found, wanted = one.get("scores", one), other.get("scores", other)
            assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("family", POOLED)
def test_exports_put_it_where_the_class_expects_it(family: str, tmp_path: Path) -> None:
    sources = make(family, ("sequence", "regression"), tmp_path)
    merged = plait.merge(sources, method="average", out=tmp_path / "m")
    assert invoke(["export", str(merged.path), "--task", "sequence", "-o", str(tmp_path / "plain")]) == 0
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    own = AutoModelForSequenceClassification.from_pretrained(sources["sequence"]).state_dict()
    assert torch.equal(plain.state_dict()[POOLED[family]], own[POOLED[family]])
    inputs = merged.tokenizer(texts(4), padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, merged.task("sequence")(**inputs).logits)


@pytest.mark.parametrize("family", POOLED)
def test_the_root_is_a_whole_encoder(family: str, tmp_path: Path) -> None:
    merged = plait.merge(make(family, ("sequence", "regression"), tmp_path), method="average", out=tmp_path / "m")
    _, told = AutoModel.from_pretrained(merged.path, output_loading_info=True)
    assert not told["missing_keys"]


def test_the_old_way_merges_it(tmp_path: Path) -> None:
    sources = make("bert", ("sequence", "regression"), tmp_path)
    line = ["merge", *(f"{n}={p}" for n, p in sources.items()), "--method", "average", "--merge-pooler"]
    assert invoke([*line, "-o", str(tmp_path / "m"), "--quiet"]) == 0
    merged = plait.load(tmp_path / "m")
    assert not any("pooler" in name for name in kept(merged.path, "sequence"))
    assert merged.task("sequence").bert is merged.task("regression").bert is merged.encoder
    manifest = json.loads((tmp_path / "m" / "plait.json").read_text())
    assert manifest["recipe"]["merge_pooler"] is True


def test_a_folder_of_the_first_version_opens(tmp_path: Path) -> None:
    sources = make("bert", ("sequence", "regression"), tmp_path)
    made = plait.merge(sources, method="average", merge_pooler=True, out=tmp_path / "m")
    record = json.loads((tmp_path / "m" / "plait.json").read_text())
    for key in ("refinement", "heads"):
        del record[key]
    (tmp_path / "m" / "plait.json").write_text(json.dumps(record))
    assert plait.load(tmp_path / "m").predict(texts(3)) == made.predict(texts(3))


def test_sources_of_one_task_average_their_poolers(tmp_path: Path) -> None:
    models = [tiny("bert", "sequence", seed=i) for i in (1, 2)]
    paths = {f"s{i}": str(save(m, tmp_path / f"s{i}")) for i, m in enumerate(models)}
    merged = plait.merge(
        paths, method="average", tasks=dict.fromkeys(paths, "mood"), weights={"s0": 3.0, "s1": 1.0},
        out=tmp_path / "m",
    )  # fmt: skip
    first, second = (m.state_dict()["bert.pooler.dense.weight"] for m in models)
    torch.testing.assert_close(
        kept(merged.path, "mood")["bert.pooler.dense.weight"], 0.75 * first + 0.25 * second
    )


def test_export_of_a_body_without_a_pooler(tmp_path: Path) -> None:
    source = save(tiny("roberta", "sequence"), tmp_path / "s")
    body = tmp_path / "b"
    AutoModelForSequenceClassification.from_pretrained(source).roberta.save_pretrained(body)
    merged = plait.merge({"s": str(source), "b": str(body)}, method="average", out=tmp_path / "m")
    assert plait.load(str(merged.path)).task("b") is not None
    assert invoke(["export", str(merged.path), "--task", "b", "-o", str(tmp_path / "x")]) == 0
