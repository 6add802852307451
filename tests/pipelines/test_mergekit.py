"""Recipes of mergekit, run: the numbers are those of its published formulas, written out here in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import plait
from plait.cli import invoke
from tests.models import body, save, tiny

PARAMETER = "encoder.layer.1.attention.self.query.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mergekit")
    drawn = {"base": tiny("bert", "body", drift=0.0)} | {n: tiny("bert", "body", seed=i) for i, n in enumerate("ab", 1)}
    return {name: save(model, folder / name) for name, model in drawn.items()}


def merged(content: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    (folder / "mk.yml").write_text(yaml.safe_dump(content))
    plait.run(folder / "mk.yml", output=folder / "out")
    return body(folder / "out")


def weights_of(models: dict[str, Path], name: str) -> torch.Tensor:
    return load_file(models[name] / "model.safetensors")[PARAMETER].double()


def recipe(models: dict[str, Path], method: str, weights: tuple[Any, Any] = (0.7, 0.6), **shared: Any) -> dict:
    entries = [{"model": str(models[n]), "parameters": {"weight": w}} for n, w in zip("ab", weights, strict=True)]
    return {"merge_method": method, "base_model": str(models["base"]), "models": entries, "parameters": shared}


def agreeing(changes: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weighted = changes * weights
    elected = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    mask = torch.sign(weighted) == elected
    return (weighted * mask).sum(0), (weights * mask).sum(0)


def test_ties(models: dict[str, Path], tmp_path: Path) -> None:
    base, changes = weights_of(models, "base"), []
    for name in "ab":
        change = weights_of(models, name) - base
        least = change.abs().flatten().sort(descending=True).values[change.numel() // 2 - 1]
        changes.append(torch.where(change.abs() >= least, change, 0.0))
    total, share = agreeing(torch.stack(changes), torch.tensor([0.7, 0.6]).double().view(2, 1, 1))
    wanted = base + 0.8 * total / torch.where(share == 0, 1.0, share)
    found = merged(recipe(models, "ties", density=0.5, **{"lambda": 0.8}), tmp_path)
    torch.testing.assert_close(found[PARAMETER].double(), wanted, rtol=1e-5, atol=1e-6)
    (tmp_path / "sum").mkdir()
    found = merged(recipe(models, "ties", density=0.5, normalize=False), tmp_path / "sum")
    torch.testing.assert_close(found[PARAMETER].double(), base + total, rtol=1e-5, atol=1e-6)


def test_task_arithmetic_and_sums_of_dare(models: dict[str, Path], tmp_path: Path) -> None:
    base = weights_of(models, "base")
    wanted = base + 0.5 * (0.7 * (weights_of(models, "a") - base) + 0.6 * (weights_of(models, "b") - base))
    for method, folder in (("task_arithmetic", "x"), ("dare_linear", "y")):  # a density of 1 drops nothing
        (tmp_path / folder).mkdir()
        found = merged(recipe(models, method, **{"lambda": 0.5}), tmp_path / folder)
        torch.testing.assert_close(found[PARAMETER].double(), wanted, rtol=1e-5, atol=1e-6)


def slerped(t: float, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    cosine = float((a / a.norm() * (b / b.norm())).sum())
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def test_slerp_by_layer_and_part(models: dict[str, Path], tmp_path: Path, capsys) -> None:
    sources = [{"model": str(models[name]), "layer_range": [0, 2]} for name in "ab"]
    content = {
        "slices": [{"sources": sources}], "merge_method": "slerp", "base_model": str(models["a"]),
        "parameters": {"t": [{"filter": "attention.self", "value": [0.2, 0.9]}, {"value": 0.5}]}, "dtype": "float32",
    }  # fmt: skip
    (tmp_path / "mk.yml").write_text(yaml.safe_dump(content))
    assert invoke(["run", str(tmp_path / "mk.yml"), "-o", str(tmp_path / "out")]) == 0
    found = body(tmp_path / "out")
    a, b = (load_file(models[name] / "model.safetensors") for name in "ab")
    for name, t in {
        "encoder.layer.0.attention.self.key.weight": 0.2, "encoder.layer.1.attention.self.key.weight": 0.9,
        "encoder.layer.1.output.dense.weight": 0.5, "embeddings.word_embeddings.weight": 0.5,
    }.items():  # fmt: skip
        wanted = slerped(t, a[name].double(), b[name].double())
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-5, atol=1e-6)
    capsys.readouterr()


def test_weights_by_layer_go_with_rules_that_start_from_a_base(models: dict[str, Path], tmp_path: Path) -> None:
    found = merged(recipe(models, "task_arithmetic", ([0, 1], 0.5)), tmp_path)
    base, a, b = (load_file(models[name] / "model.safetensors") for name in ("base", "a", "b"))
    for layer, weight in enumerate((0.0, 1.0)):
        name = f"encoder.layer.{layer}.output.dense.weight"
        wanted = base[name] + weight * (a[name] - base[name]) + 0.5 * (b[name] - base[name])
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-6)


def test_a_layer_without_any_weight_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    given = {name: {"model": str(models[name]), "layer_weights": "0,1"} for name in "ab"}
    with pytest.raises(plait.PlaitError, match="layer_weights of all sources are 0 at the first layer"):
        plait.merge(given, method="average", out=tmp_path / "out")
    with pytest.raises(plait.PlaitError, match=r"layer_weights .* cannot be had with lines"):
        plait.merge(given, base=models["base"], method="lines", out=tmp_path / "out")
