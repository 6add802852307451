"""Methods of other packages: found by entry points; a broken one is named and stops nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plait.amalgamation.gate import GATES
from plait.amalgamation.objective import OBJECTIVES
from plait.ensembles.consistency import CONSISTENCIES
from plait.ensembles.method import METHODS
from plait.ensembles.perturbation import PERTURBATIONS
from plait.merging.rule import RULES
from plait.statistics.estimator import ESTIMATORS

RULE = '''"""The entry-wise median of the sources."""

from plait.merging.rule import RULES


@RULES.register("median", when="Outliers among the sources.")
def median(params, weights, *, shift: float = 0.0):
    """Returns the median of the sources.

    Args:
        params: The parameter of the sources.
        weights: λ, not used.
        shift: Added to every entry.
    """
    return params.median(0).values + shift
'''
MERGE = """
import sys, plait
from safetensors.torch import load_file
a, b, c, out = sys.argv[1:]
merged = plait.merge({"a": a, "b": b, "c": c}, method="median", out=out)
parts = [load_file(f"{place}/model.safetensors") for place in (a, b, c)]
import torch
name = "bert.encoder.layer.0.attention.self.query.weight"
merged_state = {key.removeprefix("bert."): t for key, t in load_file(f"{out}/model.safetensors").items()}
found = merged_state[name.removeprefix("bert.")]
assert torch.equal(found, torch.stack([part[name] for part in parts]).median(0).values)
assert plait.methods("median")["median"]["when"] == "Outliers among the sources."
assert "median" in str(plait.schema()["$defs"]["plait.rules"])
print("merged")
"""


def install(place: Path, name: str, code: str, group: str = "plait.rules") -> None:
    """Puts a package with one module and one entry point where `pip install --target` would."""
    place.mkdir(exist_ok=True)
    (place / f"{name}.py").write_text(code)
    info = place / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}\n")


def test_a_merge_by_another_packages_rule(tmp_path: Path, sources: dict[str, str]) -> None:
    place = tmp_path / "site"
    install(place, "plait_median", RULE)
    install(place, "plait_broken", "raise RuntimeError('made for Plait 9')\n")
    paths = os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(
        [sys.executable, "-c", MERGE, *sources.values(), str(tmp_path / "out")],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip().endswith("merged")
    assert "plug-in plait_broken (plait_broken) of package plait_broken is not loaded" in found.stderr
    assert "RuntimeError: made for Plait 9" in found.stderr


def test_a_name_that_exists_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from plait.registry import Registry

    registry: Registry = Registry("thing", plugins="plait.things")
    registry.register("own")(lambda params: params)
    code = "from {0} import REGISTRY\nREGISTRY.register('new')(lambda p: p)\nREGISTRY.register('own')(lambda p: -p)\n"
    install(tmp_path / "site", "clashing", code.format("plait_things"), group="plait.things")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(sys.modules, "plait_things", type("Module", (), {"REGISTRY": registry}))
    assert list(registry) == ["own"], "what a broken plug-in had registered is taken back"
    assert "'own' is registered twice" in caplog.text


def test_facts_that_a_plug_in_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, facts in (
        (GATES, {"temperature": 1.0, "passes": False, "keep": "none"}),
        (OBJECTIVES, {"keep": "none"}),
        (METHODS, {"build": "shared"}),
        (PERTURBATIONS, {"place": "hidden"}),
    ):
        assert len(registry) > 0
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        registry.register("bare")(lambda params: params)
        assert facts.items() <= registry["bare"].facts.items()


def test_every_registry_takes_methods_of_others() -> None:
    groups = {
        RULES: "rules", GATES: "gates", OBJECTIVES: "objectives", PERTURBATIONS: "perturbations",
        METHODS: "ensemble_methods", ESTIMATORS: "importances", CONSISTENCIES: "consistencies",
    }  # fmt: skip
    assert {registry.plugins for registry in groups} == {f"plait.{name}" for name in groups.values()}
