"""Recipes of mergekit: each method in our words; all that is not understood is named at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import plait
from plait.cli import invoke
from plait.errors import RecipeError, RecipeProblems
from plait.recipe import MergeRecipe, parse_recipe, read_recipe
from plait.recipe.mergekit import translated

A, B, BASE = "ckpt/a", "ckpt/b", "ckpt/base"


def recipe(method: str, shared: dict | None = None, own: tuple[dict, ...] = ({}, {}), **keys: Any) -> dict[str, Any]:
    models = [{"model": place, "parameters": {"weight": 0.5, **more}} for place, more in zip((A, B), own, strict=True)]
    return {"merge_method": method, "models": models, "base_model": BASE, "parameters": shared or {}, **keys}


def method_of(content: dict[str, Any]) -> dict[str, Any]:
    return translated(content, "m.yml")["method"]


CASES = [
    (recipe("task_arithmetic"), {"name": "task_arithmetic", "scale": 1.0}),
    (recipe("task_arithmetic", {"lambda": 0.7}), {"name": "task_arithmetic", "scale": 0.7}),
    (recipe("task_arithmetic", {"normalize": True}), {"name": "task_arithmetic", "scale": 1.0}),
    (recipe("ties", {"density": 0.3, "int8_mask": True}),
     {"name": "ties", "density": 0.3, "then": "mean", "scale": 1.0}),
    (recipe("ties", {"normalize": False}, ({"density": 0.4}, {"density": 0.4})),
     {"name": "ties", "density": 0.4, "then": "sum", "scale": 1.0}),
    (recipe("dare_ties", {"density": 0.25}), {"name": "dare", "drop": 0.75, "then": "ties_sum", "scale": 1.0}),
    (recipe("dare_linear", {"density": 0.25, "rescale": False, "lambda": 2.0}),
     {"name": "dare", "drop": 0.75, "then": "sum", "scale": 0.5}),
    (recipe("breadcrumbs", {"density": 0.9}),
     {"name": "breadcrumbs", "density": 0.91, "outliers": 0.01, "then": "sum", "scale": 1.0}),
    (recipe("breadcrumbs_ties", {"density": 0.9, "gamma": 0.3}),
     {"name": "breadcrumbs", "density": 1.0, "outliers": 0.1, "then": "ties_sum", "scale": 1.0}),
    (recipe("della", {"density": 0.6, "epsilon": 0.1}),
     {"name": "della", "drop": 0.4, "epsilon": 0.2, "then": "ties", "scale": 1.0}),
    (recipe("della_linear", {"density": 0.6}),
     {"name": "della", "drop": 0.4, "epsilon": 0.3, "then": "sum", "scale": 1.0}),
    (recipe("linear"), {"name": "average"}),
    (recipe("linear", {"normalize": False}), {"name": "average"}),
]  # fmt: skip


@pytest.mark.parametrize(("content", "wanted"), CASES, ids=[content["merge_method"] for content, _ in CASES])
def test_methods_in_our_words(content: dict, wanted: dict) -> None:
    assert method_of(content) == wanted
    found = parse_recipe(content, "m.yml")
    assert isinstance(found, MergeRecipe)
    assert (found.base, found.output, found.weights()) == (BASE, "merged-m", [0.5, 0.5])


def test_methods_without_weights() -> None:
    plain = [{"model": A}, {"model": B}]
    stock = translated({"merge_method": "model_stock", "base_model": BASE, "models": [{"model": BASE}, *plain]}, "m")
    assert list(stock["sources"]) == ["a", "b"]
    karcher = translated({"merge_method": "karcher", "models": plain, "parameters": {"max_iter": 10, "tol": 1e-5}}, "m")
    assert (karcher["method"], "base" in karcher) == ({"name": "karcher"}, False)
    copied = translated({"merge_method": "passthrough", "models": plain[:1], "dtype": "bfloat16"}, "m")
    assert (copied["method"], copied["dtype"]) == ({"name": "average"}, "bfloat16")
    half = {"merge_method": "passthrough", "models": plain[:1], "dtype": "float32", "out_dtype": "float16"}
    assert translated(half, "m")["dtype"] == "float16"


SLERP = {
    "slices": [{"sources": [{"model": A, "layer_range": [0, 32]}, {"model": B, "layer_range": [0, 32]}]}],
    "merge_method": "slerp",
    "base_model": B,
    "parameters": {"t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"value": 0.25}]},
}


def test_the_slerp_that_everybody_copies() -> None:
    found = parse_recipe(SLERP, "slerp.yml")
    assert list(found.sources) == ["b", "a"]  # the base comes first
    first, second = found.sources.values()
    assert found.method.options == {"straight": 0.9995}
    for parameter, depth, share in (
        ("model.layers.0.self_attn.q_proj.weight", 0.0, 0.0), ("model.layers.4.self_attn.q_proj.weight", 0.25, 0.25),
        ("model.layers.9.self_attn.q_proj.weight", 1.0, 1.0), ("model.layers.9.mlp.up_proj.weight", 1.0, 0.25),
    ):  # fmt: skip
        assert second.weight_at(parameter, depth) == pytest.approx(share)
        assert first.weight_at(parameter, depth) == pytest.approx(1 - share)


def test_models_adapters_and_revisions() -> None:
    content = {"merge_method": "linear", "models": [
        {"model": "base+lora", "parameters": {"weight": 1}},
        {"model": "owner/name@main", "parameters": {"weight": [0, 1]}},
        {"model": {"model": {"path": "other", "revision": "r"}},
         "parameters": {"weight": {"filter": "mlp", "value": 2}}},
    ], "parameters": {"weight": 0.5}}  # fmt: skip
    lora, named, other = translated(content, "m")["sources"].values()
    assert lora == {"model": "lora", "base": "base", "weight": 1.0}
    assert named["revision"] == "main"
    assert named["layer_weights"] == [{"values": [0.0, 1.0]}, {"values": [0.5]}]
    assert other["layer_weights"] == [{"filter": "mlp", "values": [2.0]}, {"values": [0.5]}]


PROBLEMS = [
    ({"merge_method": "sce", "models": [{"model": A}]}, ["merge_method sce: no rule here does this"]),
    (recipe("ties", {}, ({"density": 0.4}, {"density": 0.5})), ["density differs between models (0.4, 0.5)"]),
    (recipe("ties", {"densty": 0.4, "rescale": True}),
     ["rescale: true is not done", "parameters.densty is not understood (did you mean 'density'?"]),
    (recipe("ties", chat_template="auto", modules={}),
     ["chat_template is not understood: copy the template", "modules is not understood"]),
    (recipe("ties", {"density": [0.2, 0.4]}), ["density of ckpt/a is [0.2, 0.4]: one number is expected"]),
    (recipe("ties", {}, ({"weight": -1}, {})), ["weight of ckpt/a is -1: weights below 0"]),
    (recipe("linear", {"normalize": False}, ({"weight": 1}, {})), ["normalize: false with weights that sum to 1.5"]),
    ({"merge_method": "linear", "models": [{"model": A}]}, ["parameters.weight of ckpt/a is missing"]),
    ({"merge_method": "ties", "models": [{"model": A, "parameters": {"weight": 1}}]}, ["base_model is missing"]),
    ({**SLERP, "parameters": {}}, ["parameters.t is missing"]),
    ({**SLERP, "parameters": {"t": 1.5}}, ["t is above 1"]),
    ({**SLERP, "base_model": None}, ["base_model is missing: slerp"]),
    ({"merge_method": "passthrough", "slices": [{"sources": [{"model": A, "layer_range": [0, 8]}]}] * 2},
     ["slices: several stack layers", "passthrough copies one model, 0 are given"]),
    ({**SLERP, "slices": [{"sources": [{"model": A, "layer_range": [4, 8]}, {"model": B, "layer_range": [4, 8]}]}]},
     ["layer_range [4, 8] of ckpt/a: the same layers from 0 on", "layer_range [4, 8] of ckpt/b"]),
    (recipe("della", {"density": 0.9, "epsilon": 0.2, "rescale": False}),
     ["rescale: false", "density 0.9 ± epsilon 0.2"]),
    (recipe("linear", dtype="float8", tokenizer={"source": "union", "tokens": {}}),
     ["dtype float8: one of float32", "tokenizer.tokens: tokens are not changed"]),
    (recipe("linear", models="x"), ["models is 'x': a list is expected"]),
    ({"merge_method": "linear"}, ["models is missing"]),
    ({"merge_method": "linear", "models": [{"weight": 1}]}, ["models has {'weight': 1}: model and parameters"]),
    ({"merge_method": "linear", "models": [{"model": 3}]}, ["models has 3: a folder or a Hub id"]),
    (recipe("model_stock", {"filter_wise": True}), ["filter_wise: true", "weight of ckpt/a is not understood"]),
    (recipe("nuslerp", {"nuslerp_row_wise": True}), ["base_model: nuslerp of changes", "nuslerp_row_wise and"]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "said"), PROBLEMS)
def test_everything_that_is_not_understood_is_named(content: dict, said: list[str]) -> None:
    with pytest.raises(RecipeProblems) as found:
        translated(content, "m.yml")
    for problem in said:
        assert any(line.startswith(f"m.yml: {problem}") for line in found.value.lines), found.value.lines


def test_the_shell_says_one_line_each_and_writes_what_it_can(tmp_path: Path, capsys) -> None:
    (tmp_path / "bad.yml").write_text(yaml.safe_dump(recipe("ties", {"rescale": True}, chat_template="auto")))
    assert invoke(["run", str(tmp_path / "bad.yml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"error: {tmp_path}/bad.yml: ") for line in lines)

    (tmp_path / "good.yml").write_text(yaml.safe_dump(SLERP))
    out = tmp_path / "recipe.yaml"
    assert invoke(["convert", str(tmp_path / "good.yml"), "-o", str(out), "--into", "there"]) == 0
    assert read_recipe(out) == plait.convert(tmp_path / "good.yml", output="there")
    assert invoke(["convert", str(tmp_path / "good.yml"), "-o", str(out)]) == 2
    assert "recipe.yaml exists (use --overwrite" in capsys.readouterr().err
    assert invoke(["convert", str(tmp_path / "good.yml")]) == 0
    assert "layer_weights" in capsys.readouterr().out


def test_other_files_are_no_recipes_of_mergekit(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        plait.convert(tmp_path / "none.yml")
    (tmp_path / "ours.yml").write_text("combine: merge")
    with pytest.raises(RecipeError, match="no merge_method: not a recipe of mergekit"):
        plait.convert(tmp_path / "ours.yml")
