"""Adapters merged into one adapter, which PEFT opens: the exact sum, its best approximation, a shared basis."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import plait
from plait import api
from plait.cli import invoke
from plait.merging.adapters import MergedAdapter
from tests.models import save, tiny
from tests.unit.checkpoints.test_adapters import moved, settings_of

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
SETTINGS: dict[str, dict[str, Any]] = {
    "a": {"r": 3, "lora_alpha": 6, "target_modules": ["query", "value", "word_embeddings"]},
    "b": {"r": 2, "use_rslora": True, "target_modules": ["query", "output.dense"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of a base and two adapters of its bare encoder."""
    place = tmp_path_factory.mktemp("adapters")
    base = save(tiny("bert", "body", drift=0.0), place / "base")
    for seed, (name, settings) in enumerate(SETTINGS.items()):
        config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", **settings)
        moved(peft.get_peft_model(AutoModel.from_pretrained(base), config), seed).save_pretrained(place / name)
    return place


def changes(folder: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Returns what an adapter changes of each weight, in float64, as PEFT applies it."""
    model = AutoModel.from_pretrained(folder / "base")
    before = {name: tensor.double().clone() for name, tensor in model.named_parameters()}
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: tensor.double() - before[name] for name, tensor in merged.named_parameters()}


def summed(folder: Path, shares: dict[str, float]) -> dict[str, torch.Tensor]:
    every = {name: changes(folder, folder / name) for name in shares}
    return {key: sum(share * every[n][key] for n, share in shares.items()) for key in every["a"]}


def merge(folder: Path, out: Path, **options: Any) -> MergedAdapter:
    found = plait.merge({"a": folder / "a", "b": folder / "b"}, out=out, **options)
    assert isinstance(found, MergedAdapter)
    return found


@pytest.mark.parametrize("how", ["cat", "svd"])
def test_the_sum_of_all_ranks_is_exact(how: str, folder: Path, tmp_path: Path) -> None:
    found = merge(folder, tmp_path / "out", keep_adapter=how, rank=5, weights={"a": 3.0, "b": 1.0})
    assert (found.rank, found.left_out) == (5, ())
    assert found.error < 1e-6
    wanted = summed(folder, {"a": 0.75, "b": 0.25})
    for name, change in changes(folder, tmp_path / "out").items():
        torch.testing.assert_close(change, wanted[name], rtol=1e-4, atol=1e-5)


def test_truncation_is_the_best_there_is_and_its_error_is_told(folder: Path, tmp_path: Path) -> None:
    found = merge(folder, tmp_path / "out", keep_adapter="svd", rank=2, method="task_arithmetic", scale=0.5)
    wanted, got = summed(folder, {"a": 0.5, "b": 0.5}), changes(folder, tmp_path / "out")
    lost, total = 0.0, 0.0
    for name, change in wanted.items():
        if not change.any():
            assert not got[name].any()
            continue
        values = torch.linalg.svdvals(change)
        assert float((change - got[name]).norm()) == pytest.approx(float(values[2:].norm()), rel=1e-3, abs=1e-5)
        lost, total = lost + float(values[2:].square().sum()), total + float(values.square().sum())
    assert found.error == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    record = json.loads((tmp_path / "out/plait_adapter.json").read_text())
    assert record["errors"][found.worst[0]] == pytest.approx(found.worst[1])
    assert record["recipe"]["keep_adapter"] == "svd"


def elected(parts: list[torch.Tensor]) -> torch.Tensor:
    stack = torch.stack(parts)
    agree = torch.sign(stack) == torch.sign(stack.sum(0))
    return (stack * agree).sum(0) / agree.sum(0).clamp(min=1)


@pytest.mark.parametrize("how", ["svd", "knots"])
def test_ties_of_the_changes_or_in_the_basis_that_all_share(how: str, folder: Path, tmp_path: Path) -> None:
    merge(folder, tmp_path / "out", keep_adapter=how, method="ties", density=1.0, rank=16 if how == "svd" else None)
    every = {name: changes(folder, folder / name) for name in "ab"}
    got = changes(folder, tmp_path / "out")
    name = "encoder.layer.0.attention.self.query.weight"
    parts = [found[name] for found in every.values()]
    if how == "svd":  # of full rank, so that nothing is cut
        torch.testing.assert_close(got[name], elected(parts), rtol=1e-3, atol=1e-4)
        return
    u, s, v = torch.linalg.svd(torch.cat(parts, dim=1), full_matrices=False)
    rank = int((s > 1e-6 * s[0]).sum())
    coordinates = (s[:rank, None] * v[:rank]).split(parts[0].shape[1], dim=1)
    torch.testing.assert_close(got[name], u[:, :rank] @ elected(list(coordinates)), rtol=1e-3, atol=1e-4)


def test_on_the_shell_and_in_a_plan(folder: Path, tmp_path: Path, capsys) -> None:
    line = ["merge", f"a={folder}/a", f"b={folder}/b", "--keep-adapter", "svd", "-o", str(tmp_path / "out")]
    assert invoke([*line, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rank"] == 3
    assert invoke([*line, "--rank", "1"]) == 0
    assert "one adapter of rank 1, " in capsys.readouterr().out
    assert invoke([*line, "--overwrite"]) == 0
    assert invoke(["merge", f"m={tmp_path}/out", "-o", str(tmp_path / "model")]) == 0  # an adapter like any other


def test_heads_of_one_task_are_averaged_and_others_left_out(folder: Path, tmp_path: Path, caplog) -> None:
    for seed, name in enumerate("xy"):
        model = type(tiny("bert")).from_pretrained(folder / "base", num_labels=2)
        config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
        moved(peft.get_peft_model(model, config), seed).save_pretrained(tmp_path / name)
    given = {name: tmp_path / name for name in "xy"}
    shared = plait.merge(given, out=tmp_path / "one", keep_adapter="cat", tasks={"x,y": "t"})
    heads = [load_file(tmp_path / n / "adapter_model.safetensors") for n in ("x", "y", "one")]
    key = next(name for name in heads[0] if name.endswith("classifier.weight"))
    torch.testing.assert_close(heads[2][key], (heads[0][key] + heads[1][key]) / 2)
    assert shared.left_out == ()
    apart = plait.merge(given, out=tmp_path / "two", keep_adapter="cat")
    assert apart.left_out == ("classifier.bias", "classifier.weight")
    assert "sources of one task (--task x,y=TASK) have them averaged" in caplog.text
    assert any(change.any() for change in changes(folder, tmp_path / "two").values())  # opens on the bare encoder


def refused(folder: Path, tmp_path: Path, said: str, sources: dict | None = None, **options: Any) -> None:
    with pytest.raises(plait.PlaitError, match=said):
        plait.merge(sources or {"a": folder / "a", "b": folder / "b"}, out=tmp_path / "no", **options)
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_had_is_refused(folder: Path, tmp_path: Path) -> None:
    refused(folder, tmp_path, "cat has the rank 5, the sum of the sources', not 3: use svd", keep_adapter="cat", rank=3)
    refused(folder, tmp_path, "cat is the sum itself: method ties needs svd", keep_adapter="cat", method="ties")
    refused(folder, tmp_path, "method slerp does not merge adapters into one", keep_adapter="svd", method="slerp")
    refused(folder, tmp_path, "--rank is that of one adapter: it goes with --keep-adapter", method="average", rank=2)
    rows = {"text": ["x"], "label": [0]}
    refused(folder, tmp_path, "data cannot be had with --keep-adapter", keep_adapter="svd", data={"a": rows})
    mixed = {"a": folder / "a", "base": folder / "base"}
    refused(folder, tmp_path, "base is no adapter", mixed, keep_adapter="svd")
    other = Path(shutil.copytree(folder / "b", tmp_path / "other"))
    settings_of(other, base_model_name_or_path="another")
    both = {"a": folder / "a", "b": other}
    refused(folder, tmp_path, r"record different bases \(a: .*, b: another\).*by --base", both, keep_adapter="svd")
    settings_of(other, use_dora=True)
    refused(folder, tmp_path, "b is use_dora: one adapter is made of plain LoRA", both, keep_adapter="svd")
    with pytest.raises(plait.PlaitError, match="evaluate cannot be had with --keep-adapter"):
        api.check({"sources": {n: str(p) for n, p in both.items()}, "output": "o", "keep_adapter": "svd",
                   "evaluate": {"a": "f.csv"}})  # fmt: skip
