"""CONTRIBUTING.md: its rule and its reference are code that works."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import plait
from plait.cli import invoke
from plait.merging.rule import RULES, laws
from tests.contracts.test_rules import CHECKS, cases, close, quick
from tests.reference.rules import entry_by_entry

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def rule_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The first block, imported from a file of its own, and forgotten by the registry afterwards."""
    file = tmp_path_factory.mktemp("mine") / "median.py"
    file.write_text(BLOCKS[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("median", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    known = set(RULES)
    spec.loader.exec_module(module)
    yield module
    for name in set(RULES) - known:
        del RULES._entries[name]


@pytest.fixture(scope="module")
def reference() -> Callable[..., Any]:
    namespace: dict[str, Any] = {"entry_by_entry": entry_by_entry}
    exec(BLOCKS[1], namespace)
    return namespace["median"]  # type: ignore[no-any-return]


def test_the_rule_is_short() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 20


def test_the_rule_merges_two_models(
    rule_module: ModuleType, sources: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = {name: sources[name] for name in ("mood", "type")}
    merged = plait.merge(two, method="median", weights={"mood": 3}, out=tmp_path / "m")
    assert merged.manifest.recipe["method"]["name"] == "median"
    heavy = load_file(Path(two["mood"]) / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(load_file(tmp_path / "m" / "model.safetensors")[f"bert.{name}"], heavy[f"bert.{name}"])
    command = ["merge", *(f"{n}={p}" for n, p in two.items()), "-o", str(tmp_path / "n"), "--method", "median"]
    assert invoke([*command, "--quiet"]) == 0
    assert invoke(["methods", "median"]) == 0
    assert "half of Σ_j λ_j" in capsys.readouterr().out


@given(data=st.data())
@quick
def test_the_rule_keeps_its_promises(
    rule_module: ModuleType, reference: Callable[..., Any], data: st.DataObject
) -> None:
    rule = RULES["median"]
    case = data.draw(cases(rule))
    for law in laws(rule):
        assert CHECKS[law](rule, case), law.value
    wanted = reference(params=list(case.params.double().numpy()), weights=case.weights.tolist())
    assert close(case.call(rule), torch.from_numpy(np.asarray(wanted)), case)
