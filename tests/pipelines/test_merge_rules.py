"""The rules of a merge: those that need nothing but a base, as commands, and sources without weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import plait
from plait.checkpoints.checkpoint import open_checkpoint
from plait.cli import invoke
from plait.merging.rule import RULES
from tests.models import body, save, texts, tiny

WITHOUT_DATA = [
    name
    for name in RULES
    if not {"grams", "importances"} & set(RULES[name].inputs) and "sources" not in RULES[name].facts
]


@pytest.mark.parametrize("method", WITHOUT_DATA)
def test_every_rule_without_data_from_the_command_line(
    method: str, sources: dict[str, str], tmp_path: Path
) -> None:
    base = save(tiny("bert", "body", seed=0, drift=0.0), tmp_path / "base")
    named = [f"{name}={path}" for name, path in sources.items()]
    given = ["--base", str(base)] if "base" in RULES[method].inputs else []
    out = tmp_path / "m"
    assert invoke(["merge", *named, "-o", str(out), "--method", method.replace("_", "-"), *given, "--quiet"]) == 0
    assert set(plait.load(str(out)).predict(texts(2))) == set(sources)
    merged = body(out)
    start = open_checkpoint(base)
    bodies = [open_checkpoint(path) for path in sources.values()]
    name = "encoder.layer.1.intermediate.dense.weight"
    inputs = {
        "params": torch.stack([body.read(body.body[name]) for body in bodies]),
        "base": start.read(start.body[name]),
        "weights": torch.ones(len(bodies)),
        "depth": 1.0,
    }
    if set(RULES[method].inputs) <= set(inputs):
        wanted = RULES[method].function(**{key: inputs[key] for key in RULES[method].inputs})
        torch.testing.assert_close(merged[name], wanted, rtol=1e-6, atol=1e-7)


def test_options_reach_the_rule_alike_from_command_line_python_and_recipe(
    sources: dict[str, str], tmp_path: Path
) -> None:
    base = save(tiny("bert", "body", seed=0, drift=0.0), tmp_path / "base")
    named = [f"{name}={path}" for name, path in sources.items()]
    options = ["--method", "actmerge", "--set", "ridge=0.5", "--base", str(base), "--quiet"]
    assert invoke(["merge", *named, "-o", str(tmp_path / "line"), *options]) == 0
    plait.merge(sources, base=str(base), method="actmerge", out=tmp_path / "python", ridge=0.5)
    recipe = tmp_path / "recipe.yaml"
    lines = [f"  {name}: {{model: {path}}}" for name, path in sources.items()]
    recipe.write_text(
        "\n".join(["combine: merge", "sources:", *lines, f"base: {base}", f"output: {tmp_path / 'recipe'}",
                   "method: {name: actmerge, ridge: 0.5}", ""])
    )  # fmt: skip
    assert invoke(["run", str(recipe), "--quiet"]) == 0
    found = [body(tmp_path / way) for way in ("line", "python", "recipe")]
    plait.merge(sources, base=str(base), method="actmerge", out=tmp_path / "default")
    default = body(tmp_path / "default")
    name = "encoder.layer.0.output.dense.weight"
    assert all(torch.equal(one[key], found[0][key]) for one in found for key in one)
    assert not torch.equal(default[name], found[0][name])


def test_a_source_without_weight_decides_nothing() -> None:
    from plait.merging.rule import RULES

    params = torch.tensor([[1.0, 1.0], [0.0, 0.0], [9.0, 9.0]])
    importances = torch.tensor([[1e-9, 3e-9], [3e-9, 1e-9], [1e2, 1e2]])
    weights = torch.tensor([1.0, 1.0, 0.0])
    found = RULES["fisher"].function(params, importances, importances.mean(1), weights)
    torch.testing.assert_close(found, torch.tensor([0.25, 0.75]))
