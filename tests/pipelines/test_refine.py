"""Refinement: the merged encoder learns the sources' own answers, on small real models of every family and head."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import plait
from plait.checkpoints.checkpoint import open_checkpoint
from plait.cli import invoke
from plait.data import read_examples
from plait.merging.refinement import Refinement, SourceTexts, refine
from plait.merging.refinement import distillation as room
from plait.merging.refinement.answers import Answers, Form, agreement, divergence
from plait.merging.refinement.heads import fold
from plait.training.trainer import Schedule
from tests.models import FAMILIES, save, texts, tiny
from tests.pipelines.test_families import columns, make
from tests.stopping import stopped_at

Paths = dict[str, str]
HEADS = ("sequence", "regression", "multi_label", "token", "qa")


def rows(count: int = 40, seed: int = 3) -> dict[str, list[str]]:
    return {"text": texts(count, seed=seed)}


def weights(folder: Path, place: str = ".") -> dict[str, torch.Tensor]:
    return load_file(folder / place / ("model.safetensors" if place == "." else "head.safetensors"))


@pytest.fixture
def texts_of(sources: Paths) -> dict[str, dict[str, list[str]]]:
    return {name: rows(seed=i) for i, name in enumerate(sources)}


def test_the_encoder_comes_nearer_to_the_sources(sources: Paths, texts_of: Any, tmp_path: Path) -> None:
    plain = plait.merge(sources, method="average", out=tmp_path / "plain")
    merged = plait.merge(
        sources, method="average", data=texts_of, refine=4, refine_rate=3e-3, out=tmp_path / "refined"
    )
    found = merged.manifest.refinement
    assert found["agreement"]["after"] > found["agreement"]["before"]
    assert found["by_pass"][-1]["divergence"] < found["by_pass"][0]["divergence"] or len(found["by_pass"]) > 1
    assert found["texts"] == dict.fromkeys(sources, 36)
    assert found["held_back"] == dict.fromkeys(sources, 4)
    before, after = weights(plain.path), weights(merged.path)
    assert set(before) == set(after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "bert.encoder.layer.0.output.dense.weight" in moved
    assert not any("pooler" in name for name in moved)
    for task in sources:
        own = [weights(one.path, f"tasks/{task}") for one in (plain, merged)]
        assert all(torch.equal(own[0][name], own[1][name]) for name in own[0])


def test_heads_learn_too_when_asked(sources: Paths, texts_of: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"method": "average", "data": texts_of, "refine": 3, "refine_rate": 1e-3}
    plain = plait.merge(sources, method="average", out=tmp_path / "plain")
    merged = plait.merge(sources, **settings, refine_heads=True, out=tmp_path / "refined")
    for task in sources:
        one, other = weights(plain.path, f"tasks/{task}"), weights(merged.path, f"tasks/{task}")
        assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
        assert not torch.equal(one["bert.pooler.dense.weight"], other["bert.pooler.dense.weight"])
        torch.testing.assert_close(merged.task(task).state_dict()["classifier.weight"], other["classifier.weight"])


def test_labels_play_no_part(sources: Paths, texts_of: Any, tmp_path: Path) -> None:
    labelled = {name: {**table, "label": ["a", "b"] * 20} for name, table in texts_of.items()}
    settings: dict[str, Any] = {"method": "average", "refine": 1}
    one = plait.merge(sources, data=texts_of, out=tmp_path / "a", **settings)
    other = plait.merge(sources, data=labelled, out=tmp_path / "b", **settings)
    assert all(torch.equal(t, weights(other.path)[n]) for n, t in weights(one.path).items())


def asked(sources: Paths, data: dict[str, Any]) -> list[SourceTexts]:
    opened = [open_checkpoint(path, name=name) for name, path in sources.items()]
    return [
        SourceTexts(one.name, one.name, one.model, one.tokenizer, read_examples(data[one.name])) for one in opened
    ]


@pytest.mark.parametrize("on", ["logits", "hidden"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_of_every_family_learns(family: str, on: Any, tmp_path: Path) -> None:
    sources = make(family, HEADS, tmp_path)
    merged = plait.merge(sources, method="average", out=tmp_path / "m")
    # Judged on the texts that it learns from: six texts say nothing about others.
    settings = Refinement(Schedule(6, 1e-3, 8, weight_decay=0.0), on=on, held_back=0.0)
    texts_of = asked(sources, {head: columns(head) for head in HEADS})
    found = refine(merged.path, texts_of, settings, state=tmp_path / "state")
    assert set(found["by_source"]) == set(HEADS)
    assert min(entry["divergence"] for entry in found["by_pass"]) < found["divergence"]["before"]
    plait.evaluate(merged.path, {head: columns(head) for head in HEADS})


def test_a_refined_source_alone_stays_what_it_is(tmp_path: Path) -> None:
    source = str(save(tiny("bert", "sequence", seed=4), tmp_path / "s"))
    merged = plait.merge({"only": source}, method="average", data={"only": rows()}, refine=1, out=tmp_path / "m")
    assert merged.manifest.refinement["agreement"] == {"before": 1.0, "after": 1.0}
    assert merged.manifest.refinement["by_pass"][0]["divergence"] < 1e-4


def test_bodies_without_heads_are_refined_on_their_states(tmp_path: Path) -> None:
    bodies = {f"b{i}": str(save(tiny("bert", "body", seed=i), tmp_path / f"b{i}")) for i in range(2)}
    merged = plait.merge(bodies, method="average", out=tmp_path / "m")
    settings = Refinement(Schedule(6, 1e-3, 8, weight_decay=0.0), held_back=0.0)
    texts_of = asked(bodies, {name: rows(12, seed=i) for i, name in enumerate(bodies)})
    found = refine(merged.path, texts_of, settings, state=tmp_path / "state")
    assert min(entry["divergence"] for entry in found["by_pass"]) < found["divergence"]["before"]


def test_sources_of_one_task_teach_its_head_in_its_order_of_labels(tmp_path: Path) -> None:
    first, second = tiny("bert", "sequence", seed=1), tiny("bert", "sequence", seed=1)
    second.config.id2label = {0: "sequence-2", 1: "sequence-0", 2: "sequence-1"}
    second.config.label2id = {name: i for i, name in second.config.id2label.items()}
    with torch.no_grad():
        for name in ("weight", "bias"):
            parameter = getattr(second.classifier, name)
            parameter.copy_(parameter[[2, 0, 1]].clone())
    paths = {name: str(save(model, tmp_path / name)) for name, model in (("a", first), ("b", second))}
    merged = plait.merge(
        paths, method="average", tasks={"a": "mood", "b": "mood"}, data={n: rows() for n in paths}, refine=1,
        out=tmp_path / "m",
    )  # fmt: skip
    assert merged.manifest.refinement["agreement"]["before"] == 1.0


def test_a_resumed_refinement_equals_an_uninterrupted_one(
    sources: Paths, texts_of: Any, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"method": "average", "data": texts_of, "refine": 3, "refine_rate": 3e-3}
    whole = plait.merge(sources, out=tmp_path / "whole", **settings)
    with stopped_at(room, "judge", 3):
        plait.merge(sources, out=tmp_path / "parts", **settings)
    assert not (tmp_path / "parts").exists()
    resumed = plait.merge(sources, out=tmp_path / "parts", resume=True, **settings)
    for name, tensor in weights(whole.path).items():
        assert torch.equal(tensor, weights(resumed.path)[name])
    assert resumed.manifest.refinement == whole.manifest.refinement
    assert not list(tmp_path.glob(".*.training"))


def test_from_the_command_line_and_a_recipe(sources: Paths, tmp_path: Path, data: Paths) -> None:
    named = [f"--data={name}={file}" for name, file in data.items()]
    line = ["merge", *(f"{n}={p}" for n, p in sources.items()), *named, "--method", "average", "--refine", "1"]
    assert invoke([*line, "--refine-texts", "8", "-o", str(tmp_path / "m"), "--quiet"]) == 0
    manifest = json.loads((tmp_path / "m" / "plait.json").read_text())
    assert manifest["refinement"]["data"]["mood"]["texts"] == 8
    recipe = {**manifest["recipe"], "output": str(tmp_path / "again")}
    plait.run(recipe)
    for name, tensor in weights(tmp_path / "m").items():
        assert torch.equal(tensor, weights(tmp_path / "again")[name])
    assert "label-free" in (tmp_path / "m" / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--refine", "2"], "--refine 2 needs texts of type, value"),
        (["--refine", "2", "--refine-on", "states"], "refine_on is 'states'"),
        (["--align-heads", "ridge"], "--align-heads ridge needs texts of type, value"),
    ],
)
def test_what_cannot_be_refined_is_said(
    sources: Paths, data: Paths, tmp_path: Path, capsys: Any, more: list[str], message: str
) -> None:
    line = ["merge", *(f"{n}={p}" for n, p in sources.items()), f"--data=mood={data['mood']}", "--method=average"]
    assert invoke([*line, *more, "-o", str(tmp_path / "m")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["shift", "ridge"])
def test_heads_are_fitted_to_the_merged_encoder(family: str, kind: str, tmp_path: Path) -> None:
    sources = make(family, HEADS, tmp_path)
    plain = plait.merge(sources, method="average", out=tmp_path / "plain")
    merged = plait.merge(
        sources, method="average", data={head: columns(head) for head in HEADS}, align_heads=kind,
        align_ridge=0.1, out=tmp_path / "m",
    )  # fmt: skip
    one, other = weights(plain.path), weights(merged.path)
    assert all(torch.equal(one[name], other[name]) for name in one)
    errors = merged.manifest.heads["error"]
    # A head whose first layer has no bias cannot be shifted.
    biased = family != "modernbert" or kind == "ridge"
    assert set(errors) == (set(HEADS) if biased else set())
    assert all(e["after"] < e["before"] for e in errors.values())
    plait.evaluate(merged, {head: columns(head) for head in HEADS})


def test_a_fitted_head_reads_what_the_map_gives() -> None:
    draw = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(6, 4)
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    states = torch.randn(50, 6, generator=draw)
    turn, shift = torch.eye(6) + 0.2 * torch.randn(6, 6, generator=draw), torch.randn(6, generator=draw)
    target = states @ turn.T + shift
    error = fold(layer, states, target, "ridge", 1e-9)
    assert error["after"] < 1e-10 < error["before"]
    torch.testing.assert_close(layer(states), target @ before[0].T + before[1], rtol=1e-4, atol=1e-4)
    moved = torch.nn.Linear(6, 4)
    weight, bias = moved.weight.detach().clone(), moved.bias.detach().clone()
    fold(moved, states, target, "shift", 1.0)
    assert torch.equal(moved.weight, weight)
    torch.testing.assert_close(moved.bias, bias + weight @ (target - states).mean(0), rtol=1e-4, atol=1e-5)


def test_a_strong_ridge_is_a_shift() -> None:
    draw = torch.Generator().manual_seed(0)
    states, target = torch.randn(40, 6, generator=draw), torch.randn(40, 6, generator=draw)
    one, other = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
    other.load_state_dict(one.state_dict())
    fold(one, states, target, "ridge", 1e9)
    fold(other, states, target, "shift", 1.0)
    torch.testing.assert_close(one.weight, other.weight)
    torch.testing.assert_close(one.bias, other.bias)


@pytest.mark.parametrize("form", list(Form))
def test_divergences_are_those_of_plain_sums(form: Form) -> None:
    draw = torch.Generator().manual_seed(2)
    tokens = form in (Form.TOKENS, Form.SPAN)
    shape = (3, 5, 2) if tokens else (3, 4)
    said, target = (torch.randn(shape, generator=draw).double() for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    one = Answers("a", form, None, [], scale=0.7)  # type: ignore[arg-type]
    found = divergence(one, said, target, mask)
    wanted = [_slowly(form, *row, 0.7) for row in zip(said, target, mask, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted).double())
    assert float(divergence(one, target, target, mask).abs().max()) < 1e-12
    assert float(agreement(one, target, target, mask).min()) > 1 - 1e-12


def _slowly(form: Form, said: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, scale: float) -> float:
    """Returns a divergence of one text by sums over Python numbers."""
    real = int(mask.sum())
    match form:
        case Form.CLASS:
            return _kl(said.tolist(), target.tolist())
        case Form.TOKENS:
            return sum(_kl(said[t].tolist(), target[t].tolist()) for t in range(real)) / real
        case Form.SPAN:
            ends = [_kl(said[:real, e].tolist(), target[:real, e].tolist()) for e in range(2)]
            return sum(ends) / 2
        case Form.LABELS:
            pairs = zip(said.tolist(), target.tolist(), strict=True)
            return sum(_kl([z, 0.0], [y, 0.0]) for z, y in pairs) / len(said)
    return sum((z - y) ** 2 for z, y in zip(said.tolist(), target.tolist(), strict=True)) / len(said) / scale


def _kl(said: list[float], target: list[float]) -> float:
    p, q = ([math.exp(v) for v in row] for row in (target, said))
    p, q = ([v / sum(row) for v in row] for row in (p, q))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_a_body_beside_a_headed_source_is_refined(tmp_path: Path) -> None:
    for family in ("bert", "albert", "mpnet"):
        sources = make(family, ("sequence", "body"), tmp_path / family)
        data = {name: rows(10, seed=i) for i, name in enumerate(sources)}
        for on in ("logits", "hidden"):
            merged = plait.merge(
                sources, method="average", data=data, refine=1, refine_on=on, out=tmp_path / family / on
            )
            assert set(merged.manifest.refinement["by_source"]) == {"sequence", "body"}


def test_one_text_teaches_and_judges(sources: Paths, texts_of: Any, tmp_path: Path) -> None:
    data = {**texts_of, "mood": {"text": ["the film was good"]}}
    found = plait.merge(sources, method="average", data=data, refine=1, out=tmp_path / "m").manifest.refinement
    assert (found["texts"]["mood"], found["held_back"]["mood"]) == (1, 0)


def test_sources_count_by_their_weight_however_many_texts_they_have(sources: Paths) -> None:
    data = {"mood": rows(30), "type": rows(10, seed=1), "value": rows(20, seed=2)}
    given = [replace(one, weight=w) for one, w in zip(asked(sources, data), (1.0, 2.0, 0.0), strict=True)]
    answers = [room.ask(one, on="logits", max_length=None, own_pooler=True) for one in given]
    texts = room.Texts(answers, 0.0, 0)
    counts = [len(one.said) for one in answers]
    means = [share * count / sum(counts) for share, count in zip(texts.shares, counts, strict=True)]
    assert means == pytest.approx([1 / 3, 2 / 3, 0.0])


def test_windows_of_one_context_are_not_parted(tmp_path: Path) -> None:
    source = str(save(tiny("bert", "qa", seed=1), tmp_path / "qa"))
    context = " ".join(texts(12, seed=3))
    table = {
        "question": ["who was in paris ?"] * 6, "context": [context] * 6,
        "answers": [{"text": ["film"], "answer_start": [0]}] * 6,
    }  # fmt: skip
    [one] = asked({"qa": source}, {"qa": table})
    answers = room.ask(one, on="logits", max_length=32, own_pooler=False)
    assert len(answers.said) > 6
    teach, held = room.Texts([answers], 0.3, 0).split
    texts_in = [{answers.encoded.rows[row] for _, row in part} for part in (teach, held)]
    assert not texts_in[0] & texts_in[1]
    assert texts_in[0] | texts_in[1] == set(range(6))


def test_a_refinement_that_does_not_help_is_said_and_undone(
    sources: Paths, texts_of: Any, tmp_path: Path
) -> None:
    plain = plait.merge(sources, method="average", out=tmp_path / "plain")
    merged = plait.merge(
        sources, method="average", data=texts_of, refine=1, refine_rate=10.0, out=tmp_path / "m"
    )
    assert merged.manifest.refinement["kept"] is False
    card = (tmp_path / "m" / "README.md").read_text()
    assert "did not raise the agreement" in card
    assert "and refined" not in card
    assert all(torch.equal(t, weights(merged.path)[n]) for n, t in weights(plain.path).items())


def test_models_can_be_trained_after_a_prediction(sources: Paths, tmp_path: Path) -> None:
    merged = plait.merge(sources, method="average", out=tmp_path / "m")
    opened = plait.load(merged.path)
    opened.predict(texts(3))
    model = opened.task("mood")
    model(**opened.tokenizer(texts(2), padding=True, return_tensors="pt")).logits.sum().backward()
    assert model.classifier.weight.grad is not None


@pytest.mark.parametrize("change", [{"seed": 9}, {"max_length": 6}, {"tasks": {"mood": "m", "type": "t"}}])
def test_another_run_is_not_gone_on_with(
    sources: Paths, texts_of: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"method": "average", "data": texts_of, "refine": 2, "out": tmp_path / "m"}
    with stopped_at(room, "judge", 3):
        plait.merge(sources, **settings)
    with pytest.raises(plait.PlaitError, match="was left by another run"):
        plait.merge(sources, resume=True, **settings, **change)


def test_what_decides_is_recorded(sources: Paths, texts_of: Any, tmp_path: Path) -> None:
    merged = plait.merge(
        sources, method="average", data=texts_of, refine=1, seed=5, max_length=8, out=tmp_path / "m"
    )
    assert merged.manifest.recipe["method"] == {"name": "average", "seed": 5, "max_length": 8}


def test_the_default_knows_the_base_and_refines_where_there_are_texts(tmp_path: Path) -> None:
    base = save(tiny("bert", "body", seed=0), tmp_path / "base")
    paths = make("bert", ("sequence", "regression"), tmp_path)
    data = {name: rows(12, seed=i) for i, name in enumerate(paths)}
    found = {
        "nothing": plait.merge(paths, out=tmp_path / "a"),
        "base": plait.merge(paths, base=base, out=tmp_path / "b"),
        "texts": plait.merge(paths, data=data, out=tmp_path / "c"),
        "both": plait.merge(paths, base=base, data=data, examples=8, ridge=0.2, out=tmp_path / "d"),
        "forward": plait.merge(paths, base=base, data=data, forward=True, refine=0, out=tmp_path / "e"),
    }
    names = {name: one.manifest.recipe["method"]["name"] for name, one in found.items()}
    passes = {name: one.manifest.recipe["refine"] for name, one in found.items()}
    heads = {name: one.manifest.recipe["align_heads"] for name, one in found.items()}
    assert heads == {
        "nothing": "none", "base": "none", "texts": "ridge", "both": "ridge", "forward": "ridge",
    }  # fmt: skip
    assert names == {
        "nothing": "average", "base": "actmerge", "texts": "regmean", "both": "actmerge", "forward": "regmean",
    }  # fmt: skip
    assert passes == {"nothing": 0, "base": 0, "texts": 3, "both": 3, "forward": 0}
